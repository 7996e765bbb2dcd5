"""PyTensor Ops in c01b layout (channel, row, column, batch). Each file defines formula, gradient and NumPy reference.

convolution   cross-correlation with stride, padding and groups, and its two adjoints
max_pool      max pooling that also returns the position of each maximum
average_pool  average pooling
lrn           local response normalisation across channels
crop          uint8 images -> cropped, mirrored, mean-subtracted floats
dropout       counter-based inverted dropout
"""

from alexnet.ops.average_pool import AveragePool, AveragePoolGradient
from alexnet.ops.convolution import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient
from alexnet.ops.crop import CropMirror
from alexnet.ops.dropout import Dropout
from alexnet.ops.lrn import LRN, LRNGradient
from alexnet.ops.max_pool import MaxPool, MaxPoolGradient

__all__ = [
    "LRN",
    "AveragePool",
    "AveragePoolGradient",
    "Convolution",
    "ConvolutionFilterGradient",
    "ConvolutionInputGradient",
    "CropMirror",
    "Dropout",
    "LRNGradient",
    "MaxPool",
    "MaxPoolGradient",
]
