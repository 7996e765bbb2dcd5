"""Functions of symbolic images: convolution, pooling, normalisation, crops and dropout, in NCHW or c01b layout.

    layout   images                          filters
    NCHW     (batch, channel, row, column)   (output, channel / groups, row, column), as in PyTorch; the default
    c01b     (channel, row, column, batch)   (channel / groups, row, column, output), as in cuda-convnet

The Ops compute in c01b. A function in NCHW converts its images and its result, which costs nothing between two of these
functions: adjacent conversions cancel (alexnet.ops.rewrites).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import pytensor.tensor as pt
from pytensor.tensor import TensorLike
from pytensor.tensor.variable import TensorVariable

from alexnet.ops.average_pool import AveragePool2D
from alexnet.ops.base import Length, whole_number
from alexnet.ops.batch_norm import BatchNorm2D
from alexnet.ops.convolution import Convolution
from alexnet.ops.crop import CropMirror
from alexnet.ops.inverted_dropout import InvertedDropout
from alexnet.ops.local_response_norm import LocalResponseNorm
from alexnet.ops.max_pool import MaxPool2D

Layout: TypeAlias = Literal["NCHW", "c01b"]
Pair: TypeAlias = int | tuple[int, int]          # of both axes, or (of rows, of columns)
Margins: TypeAlias = list[tuple[Length, Length]]         # (before, after) in pixels, of rows and of columns

LAYOUTS = "NCHW", "c01b"
TO_C01B = 1, 2, 3, 0                             # of NCHW images, and of filters (output, channel, row, column)
TO_NCHW = 3, 0, 1, 2


def conv2d(
    x: TensorLike,
    filters: TensorLike,
    bias: TensorLike | None = None,
    stride: Pair = 1,
    padding: Pair | Literal["valid", "same"] = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: Layout = "NCHW",
) -> TensorVariable:
    """Return the cross-correlation of images with filters, plus the bias of each output channel.

    Args:
        x: images, float32 or float64, in the layout.
        filters: of the dtype of x, in the layout.
        bias: (outputs,); None: no bias.
        stride: pixels between outputs.
        padding: zeros on both sides of the rows and of the columns; "valid": none; "same": as many outputs as pixels,
            divided by the stride and rounded up. If their number is odd, the additional zero is at the end.
        dilation: distance in pixels between the elements of a filter.
        groups: number of groups of channels; group i of the outputs depends on group i of the inputs only.

    Raises:
        ValueError: a length, the groups or the layout is invalid.
        TypeError: an input has another dtype or number of axes.
    """
    x = _to_c01b(x, layout, "x")
    filters = _dilated(_to_c01b(filters, layout, "filters"), _pair("dilation", dilation, least=1))
    strides = _pair("stride", stride, least=1)
    margins = _margins(padding, x, filters, strides)
    pad = margins[0][0]
    if not isinstance(pad, int) or margins != [(pad, pad), (pad, pad)]:
        x = zero_padded(x, margins)
        pad = 0
    common = math.gcd(*strides)                  # the kernels have one stride; the rest is subsampling
    y = Convolution(common, pad, groups)(x, filters)
    if strides != (common, common):
        y = y[:, :: strides[0] // common, :: strides[1] // common]
    if bias is not None:
        bias = pt.as_tensor_variable(bias)
        if bias.type.ndim != 1:
            raise TypeError(f"the bias must have one axis, (outputs,), got {bias.type.ndim}")
        y = y + bias.dimshuffle(0, "x", "x", "x")
    return _from_c01b(y, layout)


def max_pool2d(
    x: TensorLike,
    size: Pair,
    stride: Pair | None = None,
    padding: int = 0,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
) -> TensorVariable:
    """Return the maximum of each window of the images. A NaN in a window is its maximum.

    Args:
        x: images, float32 or float64, in the layout.
        size: pixels of a square window along each axis.
        stride: pixels between windows, equal along both axes; None: size.
        padding: pixels added on each side, which are never the maximum.
        ceil_mode: count an incomplete last window.

    Raises:
        ValueError: the windows are not square, larger than the image, or larger than 16 pixels.
    """
    side = _square("the size of a pooling window", size)
    step = side if stride is None else _square("a pooling stride", stride)
    y, _ = MaxPool2D(side, step, padding, ceil_mode)(_to_c01b(x, layout, "x"))
    return _from_c01b(y, layout)


def avg_pool2d(
    x: TensorLike, size: Pair, stride: Pair | None = None, padding: int = 0, layout: Layout = "NCHW"
) -> TensorVariable:
    """Return the mean of each window of the images, including the zeros of the padding.

    Args:
        x: images, float32 or float64, in the layout.
        size: pixels of a square window along each axis.
        stride: pixels between windows, equal along both axes; None: size.
        padding: zeros added on each side.

    Raises:
        ValueError: the windows are not square, or larger than the image.
    """
    side = _square("the size of a pooling window", size)
    step = side if stride is None else _square("a pooling stride", stride)
    x = _to_c01b(x, layout, "x")
    if whole_number("padding", padding, least=0):
        x = zero_padded(x, [(padding, padding)] * 2)
    return _from_c01b(AveragePool2D(side, step)(x), layout)


def lrn(
    x: TensorLike,
    n: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    layout: Layout = "NCHW",
) -> TensorVariable:
    """Return x / (k + alpha * sum of x ** 2 over n adjacent channels) ** beta.

    alpha is not divided by n; Caffe and PyTorch divide it.

    Source: Krizhevsky et al. 2012, section 3.3.
    """
    return _from_c01b(LocalResponseNorm(n, k, alpha, beta)(_to_c01b(x, layout, "x")), layout)


def batch_norm(
    x: TensorLike,
    gamma: TensorLike,
    beta: TensorLike,
    epsilon: float = 1e-5,
    relu: bool = False,
    layout: Layout = "NCHW",
) -> tuple[TensorVariable, TensorVariable, TensorVariable]:
    """Normalise each channel over the rows, the columns and the batch, as in training.

    Args:
        x: images, float32 or float64, in the layout.
        gamma, beta: (channel,), of the dtype of x.
        epsilon: added to the variance.
        relu: whether ReLU follows.

    Returns:
        (y, mean, variance): y is gamma * (x - mean) / sqrt(variance + epsilon) + beta, or with relu the maximum of that
        and 0. mean and variance, (channel,), serve running averages. The variance is divided by the number of values n;
        for its running average PyTorch multiplies it by n / (n - 1).

    Source: Ioffe and Szegedy 2015, algorithm 1.
    """
    y, mean, variance = BatchNorm2D(epsilon, relu)(_to_c01b(x, layout, "x"), gamma, beta)
    return _from_c01b(y, layout), mean, variance


def crop_mirror(
    images: TensorLike,
    mean: TensorLike,
    rows: TensorLike,
    columns: TensorLike,
    mirrors: TensorLike,
    size: int,
    layout: Layout = "NCHW",
) -> TensorVariable:
    """Subtract the mean image, then crop each image to size x size pixels and optionally mirror it left to right.

    Args:
        images: uint8, in the layout.
        mean: float (channel, row, column), subtracted before cropping.
        rows, columns: int32 (batch,), the top left corner of each crop.
        mirrors: uint8 (batch,), nonzero to mirror the image.

    Raises:
        ValueError: a crop extends beyond its image. In JAX mode, its pixels are NaN instead.
    """
    return _from_c01b(CropMirror(size)(_to_c01b(images, layout, "images"), mean, rows, columns, mirrors), layout)


def dropout(
    x: TensorLike,
    rate: float = 0.5,
    *,
    seed: TensorLike,
    step: TensorLike,
    stream: int = 0,
    layout: Layout = "NCHW",
) -> TensorVariable:
    """Return x / (1 - rate) for elements that a random mask keeps, else 0.

    The mask is a function of seed, step and stream and has no state, so it is the same in every mode.

    Args:
        x: float32 or float64; of any number of axes, of which only four have a layout.
        rate: probability of dropping an element, at least 0 and below 1.
        seed, step: integers or integer scalars; pass the number of the training step, for other masks in each.
        stream: integer, at least 0, different in each layer.
    """
    x = pt.as_tensor_variable(x)
    drop = InvertedDropout(rate, stream)
    if x.type.ndim != 4:
        return drop(x, seed, step)
    return _from_c01b(drop(_to_c01b(x, layout, "x"), seed, step), layout)


def _to_c01b(x: TensorLike, layout: Layout, name: str) -> TensorVariable:
    """Return images, or filters, as a symbolic variable in c01b.

    Raises:
        ValueError: unknown layout.
        TypeError: x does not have four axes.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    x = pt.as_tensor_variable(x)
    if x.type.ndim != 4:
        raise TypeError(f"{name} must have 4 axes, {layout}, got {x.type.ndim}")
    return x.dimshuffle(TO_C01B) if layout == "NCHW" else x


def _from_c01b(y: TensorVariable, layout: Layout) -> TensorVariable:
    return y.dimshuffle(TO_NCHW) if layout == "NCHW" else y


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return (of rows, of columns) of an integer or a pair. Raises ValueError or TypeError."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be an integer or a pair of integers, got {value!r}")
    rows, columns = (whole_number(name, each, least) for each in values)
    return rows, columns


def _square(name: str, value: Pair) -> int:
    """Return the common length of both axes. Raises ValueError."""
    rows, columns = _pair(name, value, least=1)
    if rows != columns:
        raise ValueError(f"{name} must be the same along rows and columns, got {value!r}")
    return rows


def _margins(
    padding: Pair | str, x: TensorVariable, filters: TensorVariable, strides: tuple[int, int]
) -> Margins:
    """Return the zeros before and after the rows and the columns. Raises ValueError if the padding is invalid."""
    if not isinstance(padding, str):
        return [(n, n) for n in _pair("padding", padding, least=0)]
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if padding != "same":
        raise ValueError(f'padding must be an integer, a pair, "valid" or "same", got {padding!r}')
    missing = [
        size - 1 if stride == 1 else _positive((n - 1) // stride * stride + size - n)
        for n, size, stride in zip(_lengths(x)[1:3], _lengths(filters)[1:3], strides, strict=True)
    ]
    return [(n // 2, n - n // 2) for n in missing]


def _positive(n: Any) -> Any:
    """Return the maximum of n and 0."""
    return max(n, 0) if isinstance(n, int) else pt.maximum(n, 0)


def zero_padded(x: TensorVariable, margins: Margins) -> TensorVariable:
    """Return c01b images with zeros around each."""
    (top, bottom), (left, right) = margins
    channels, height, width, batch = _lengths(x)
    zeros = pt.zeros((channels, height + top + bottom, width + left + right, batch), dtype=x.type.dtype)
    return zeros[:, top : top + height, left : left + width].set(x)


def _dilated(filters: TensorVariable, dilation: tuple[int, int]) -> TensorVariable:
    """Return c01b filters with dilation - 1 zeros between their elements."""
    if dilation == (1, 1):
        return filters
    channels, height, width, outputs = _lengths(filters)
    rows, columns = dilation
    zeros = pt.zeros(
        (channels, (height - 1) * rows + 1, (width - 1) * columns + 1, outputs), dtype=filters.type.dtype
    )
    return zeros[:, ::rows, ::columns].set(filters)


def _lengths(x: TensorVariable) -> list[Any]:
    """Return the length of each axis, as an int if it is static."""
    return [x.shape[axis] if n is None else n for axis, n in enumerate(x.type.shape)]
