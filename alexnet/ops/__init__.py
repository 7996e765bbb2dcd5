"""Convolution, pooling and normalisation for PyTensor, on C kernels in every mode. The library of this project.

functional    conv2d(), max_pool2d() …: functions of images in NCHW or c01b layout

The Ops compute in c01b layout (channel, row, column, batch). Each file defines formula, gradient and NumPy reference:

convolution   cross-correlation with stride, padding and groups, and its two adjoints
max_pool      max pooling that also returns the position of each maximum
average_pool  average pooling
lrn           local response normalisation across channels
batch_norm    batch normalisation of each channel
crop          uint8 images -> cropped, mirrored, mean-subtracted floats
dropout       counter-based inverted dropout

Their implementations, which are imported when they are needed:

kernels        C kernels, compiled at first use for the host processor; without a C compiler NumPy computes
numba_kernels  calls of the C kernels from PyTensor's Numba mode, its default
lowerings      functions of JAX arrays, for PyTensor's JAX mode
rewrites       graph rewrites: conversions between layouts that cancel
registry       which function computes an Op; an Op defined elsewhere brings its own

Importing this package adds rewrites to PyTensor's database and changes no setting.
"""

import alexnet.ops.rewrites  # registers the rewrites with PyTensor
from alexnet.ops.average_pool import AveragePool2D, AveragePoolGradient
from alexnet.ops.batch_norm import BatchNorm2D, BatchNormGradient
from alexnet.ops.convolution import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient
from alexnet.ops.crop import CropMirror
from alexnet.ops.functional import avg_pool2d, batch_norm, conv2d, crop_mirror, dropout, lrn, max_pool2d
from alexnet.ops.inverted_dropout import InvertedDropout
from alexnet.ops.local_response_norm import LocalResponseNorm, LRNGradient
from alexnet.ops.max_pool import MaxPool2D, MaxPoolGradient

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "crop_mirror",
    "dropout",
    "lrn",
    "max_pool2d",
    "LocalResponseNorm",
    "AveragePool2D",
    "AveragePoolGradient",
    "BatchNorm2D",
    "BatchNormGradient",
    "Convolution",
    "ConvolutionFilterGradient",
    "ConvolutionInputGradient",
    "CropMirror",
    "InvertedDropout",
    "LRNGradient",
    "MaxPool2D",
    "MaxPoolGradient", "alexnet",
]
