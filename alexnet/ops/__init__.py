"""PyTensor Ops in c01b layout (channel, row, column, batch). Each file defines formula, gradient and NumPy reference.

convolution   cross-correlation with stride, padding and groups, and its two adjoints
max_pool      max pooling that also returns the position of each maximum
average_pool  average pooling
lrn           local response normalisation across channels
crop          uint8 images -> cropped, mirrored, mean-subtracted floats
dropout       counter-based inverted dropout
"""

from alexnet.ops.average_pool import AveragePool2D, AveragePoolGradient
from alexnet.ops.convolution import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient
from alexnet.ops.crop import CropMirror
from alexnet.ops.dropout import InvertedDropout
from alexnet.ops.lrn import LocalResponseNorm, LRNGradient
from alexnet.ops.max_pool import MaxPool2D, MaxPoolGradient

__all__ = [
    "LocalResponseNorm",
    "AveragePool2D",
    "AveragePoolGradient",
    "Convolution",
    "ConvolutionFilterGradient",
    "ConvolutionInputGradient",
    "CropMirror",
    "InvertedDropout",
    "LRNGradient",
    "MaxPool2D",
    "MaxPoolGradient",
]
