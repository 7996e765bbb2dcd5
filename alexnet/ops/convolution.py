"""Convolution in the sense of neural networks (cross-correlation), and its two gradients, which are its adjoints.

    y[o, r, s, b] = sum over c, i, j of W[c, i, j, o] * x[c, r * stride + i - pad, s * stride + j - pad, b]

Images are (channel, row, column, batch), filters (in / groups, row, column, out). Input and output channels are split
into groups; output group g depends only on input group g.

Source: Krizhevsky et al. 2012, section 3.5.
"""

import numpy as np
from pytensor.gradient import DisconnectedType

from alexnet.ops.base import (
    ShapedOp,
    float_tensor,
    integer_tensor,
    known,
    length,
    row_and_column_lengths,
    same_dtype,
    whole_number,
    windows_along,
)


class _ConvolutionOp(ShapedOp):
    """Base class of the three Ops: stride, pad (pixels on each side), groups, and validation of shapes."""

    __props__ = ("stride", "pad", "groups")

    def __init__(self, stride=1, pad=0, groups=1):
        self.stride = whole_number("convolution stride", stride, least=1)
        self.pad = whole_number("convolution pad", pad, least=0)
        self.groups = whole_number("convolution groups", groups, least=1)

    @property
    def geometry(self):
        """(stride, pad, groups), in the order that every kernel expects."""
        return self.stride, self.pad, self.groups

    def check(self, x_shape, W_shape, g_shape=(None,) * 4):
        """Raise ValueError if the shapes of images, filters and outputs are inconsistent; None means unknown."""
        channels, per_group, out = x_shape[0], W_shape[0], W_shape[3]
        if known(channels, per_group) and channels != per_group * self.groups:
            raise ValueError(
                f"{self}: filters of {per_group} channels in {self.groups} groups need "
                f"{per_group * self.groups} input channels, got {channels}"
            )
        if known(out) and out % self.groups:
            raise ValueError(f"{self}: output channels must be a multiple of groups={self.groups}, got {out}")
        if known(out, g_shape[0]) and out != g_shape[0]:
            raise ValueError(f"{self}: filters make {out} output channels, the gradient has {g_shape[0]}")
        for axis in (1, 2):
            n, size, outputs = x_shape[axis], W_shape[axis], g_shape[axis]
            if not known(n, size):
                continue
            if n + 2 * self.pad < size:
                pixels = n + 2 * self.pad
                raise ValueError(f"{self}: filters of size {size} need at least as many pixels, got {pixels} padded")
            if known(outputs) and outputs != windows_along(n, size, self.stride, self.pad):
                expected = windows_along(n, size, self.stride, self.pad)
                raise ValueError(f"{self}: the gradient must have {expected} outputs along axis {axis}, got {outputs}")


class Convolution(_ConvolutionOp):
    """Compute y = x * W, of shape (out, rows, columns, batch). x and W are both float32 or both float64.

    Raises:
        ValueError: channels, groups or sizes are inconsistent.
        TypeError: an input has another dtype or number of axes.
    """

    def make_node(self, x, W):
        x, W = float_tensor(self, "x", x), float_tensor(self, "W", W)
        dtype = same_dtype(self, x, W)
        self.check(x.type.shape, W.type.shape)
        return self.apply([x, W], [dtype])

    def shapes(self, inputs, input_shapes):
        x, W = input_shapes
        rows, columns = (windows_along(x[axis], W[axis], self.stride, self.pad) for axis in (1, 2))
        return [(W[3], rows, columns, x[3])]

    def perform(self, node, inputs, outputs):
        x, W = inputs
        self.check(x.shape, W.shape)
        y = np.empty(self.shapes(None, [x.shape, W.shape])[0], x.dtype)
        outputs[0][0] = forward(x, W, *self.geometry, out=y)

    def pullback(self, inputs, outputs, cotangents):
        x, W = inputs
        (g,) = cotangents
        return [
            ConvolutionInputGradient(*self.geometry)(W, g, *row_and_column_lengths(x)),
            ConvolutionFilterGradient(*self.geometry)(x, g, *row_and_column_lengths(W)),
        ]


class ConvolutionInputGradient(_ConvolutionOp):
    """Adjoint of x -> x * W: maps g (out, rows, columns, batch) to images of height x width pixels."""

    def make_node(self, W, g, height, width):
        W, g = float_tensor(self, "W", W), float_tensor(self, "g", g)
        lengths = [integer_tensor(self, name, n, "int64", 0) for name, n in (("height", height), ("width", width))]
        dtype = same_dtype(self, W, g)
        static = [n if isinstance(n, int) else None for n in map(length, lengths)]
        self.check((None, *static, None), W.type.shape, g.type.shape)
        return self.apply([W, g, *lengths], [dtype])

    def shapes(self, inputs, input_shapes):
        W, g = input_shapes[:2]
        channels = W[0] * self.groups if known(W[0]) else None
        return [(channels, length(inputs[2]), length(inputs[3]), g[3])]

    def perform(self, node, inputs, outputs):
        W, g, height, width = inputs
        dx = np.empty((W.shape[0] * self.groups, int(height), int(width), g.shape[3]), g.dtype)
        self.check(dx.shape, W.shape, g.shape)
        outputs[0][0] = input_gradient(W, g, *self.geometry, out=dx)

    def connection_pattern(self, node):
        return [[True], [True], [False], [False]]

    def pullback(self, inputs, outputs, cotangents):
        W, g = inputs[:2]
        (dx,) = cotangents
        return [
            ConvolutionFilterGradient(*self.geometry)(dx, g, *row_and_column_lengths(W)),
            Convolution(*self.geometry)(dx, W),
            DisconnectedType()(),
            DisconnectedType()(),
        ]


class ConvolutionFilterGradient(_ConvolutionOp):
    """Adjoint of W -> x * W: accumulates products of x and g into filters of size_r x size_c pixels."""

    def make_node(self, x, g, size_r, size_c):
        x, g = float_tensor(self, "x", x), float_tensor(self, "g", g)
        sizes = [integer_tensor(self, name, n, "int64", 0) for name, n in (("size_r", size_r), ("size_c", size_c))]
        dtype = same_dtype(self, x, g)
        static = [n if isinstance(n, int) else None for n in map(length, sizes)]
        self.check(x.type.shape, (None, *static, g.type.shape[0]), g.type.shape)
        return self.apply([x, g, *sizes], [dtype])

    def shapes(self, inputs, input_shapes):
        x, g = input_shapes[:2]
        per_group = x[0] // self.groups if known(x[0]) else None
        return [(per_group, length(inputs[2]), length(inputs[3]), g[0])]

    def perform(self, node, inputs, outputs):
        x, g, size_r, size_c = inputs
        dW = np.empty((x.shape[0] // self.groups, int(size_r), int(size_c), g.shape[0]), g.dtype)
        self.check(x.shape, dW.shape, g.shape)
        outputs[0][0] = filter_gradient(x, g, *self.geometry, out=dW)

    def connection_pattern(self, node):
        return [[True], [True], [False], [False]]

    def pullback(self, inputs, outputs, cotangents):
        x, g = inputs[:2]
        (dW,) = cotangents
        return [
            ConvolutionInputGradient(*self.geometry)(dW, g, *row_and_column_lengths(x)),
            Convolution(*self.geometry)(x, dW),
            DisconnectedType()(),
            DisconnectedType()(),
        ]


def forward(x, W, stride, pad, groups, out):
    """Write x * W to out, one filter pixel at a time, and return out."""
    padded = _padded(x, pad)
    out[...] = 0
    for xg, Wg, yg in zip(_split(padded, groups, 0), _split(W, groups, 3), _split(out, groups, 0), strict=True):
        for i, j, pixels in _taps(xg, W, out, stride):
            yg += np.tensordot(Wg[:, i, j], pixels, axes=(0, 0))
    return out


def input_gradient(W, g, stride, pad, groups, out):
    """Write the adjoint of x -> x * W at g to out, which has the shape of the images, and return out."""
    channels, height, width, batch = out.shape
    padded = np.zeros((channels, height + 2 * pad, width + 2 * pad, batch), out.dtype)
    for dxg, Wg, gg in zip(_split(padded, groups, 0), _split(W, groups, 3), _split(g, groups, 0), strict=True):
        for i, j, pixels in _taps(dxg, W, g, stride):
            pixels += np.tensordot(Wg[:, i, j], gg, axes=(1, 0))
    out[...] = padded[:, pad : pad + height, pad : pad + width]
    return out


def filter_gradient(x, g, stride, pad, groups, out):
    """Write the adjoint of W -> x * W at g to out, which has the shape of the filters, and return out."""
    padded = _padded(x, pad)
    for xg, dWg, gg in zip(_split(padded, groups, 0), _split(out, groups, 3), _split(g, groups, 0), strict=True):
        for i, j, pixels in _taps(xg, out, g, stride):
            dWg[:, i, j] = np.tensordot(pixels, gg, axes=((1, 2, 3), (1, 2, 3)))
    return out


def _padded(x, pad):
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x


def _split(array, groups, axis):
    """Return views of the groups along an axis."""
    return np.split(array, groups, axis)


def _taps(padded, W, y, stride):
    """Yield (i, j, view) per filter pixel: the padded image pixels it multiplies, one per output pixel."""
    rows, columns = y.shape[1:3]
    for i in range(W.shape[1]):
        for j in range(W.shape[2]):
            row_slice = slice(i, i + stride * (rows - 1) + 1, stride)
            yield i, j, padded[:, row_slice, slice(j, j + stride * (columns - 1) + 1, stride)]
