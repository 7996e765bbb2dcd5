"""Convolution in the sense of neural networks (cross-correlation), and its two gradients, which are its adjoints.

    y[o, r, s, b] = sum over c, i, j of W[c, i, j, o] * x[c, r * stride + i - pad, s * stride + j - pad, b]

Images x are (channels, height, width, batch), filters W (channels / groups, filter_height, filter_width, outputs), and
y and its gradient g (outputs, out_height, out_width, batch). Input and output channels are split into groups; output
group n depends only on input group n.

Source: Krizhevsky et al. 2012, section 3.5.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import TensorLike

from alexnet.ops.base import (
        Inputs,
    Shape,
    ShapedOp,
    float_tensor,
    height_and_width,
    length,
    length_tensor,
    same_dtype,
    static_length,
    whole_number,
    windows_along,
)


class _ConvolutionOp(ShapedOp):
    """Base class of the three Ops: stride, pad (pixels on each side), groups, and validation of shapes."""

    __props__ = ("stride", "pad", "groups")

    def __init__(self, stride: int = 1, pad: int = 0, groups: int = 1) -> None:
        self.stride = whole_number("convolution stride", stride, least=1)
        self.pad = whole_number("convolution pad", pad, least=0)
        self.groups = whole_number("convolution groups", groups, least=1)

    @property
    def geometry(self) -> tuple[int, int, int]:
        """(stride, pad, groups), in the order that every kernel expects."""
        return self.stride, self.pad, self.groups

    def check(self, x_shape: Shape, W_shape: Shape, g_shape: Shape = (None,) * 4) -> None:
        """Raise ValueError if the shapes of images, filters and outputs are inconsistent; None means unknown."""
        channels = x_shape[0]
        per_group = W_shape[0]
        outputs = W_shape[3]
        if channels is not None and per_group is not None and channels != per_group * self.groups:
            raise ValueError(
                f"{self}: filters of {per_group} channels in {self.groups} groups need "
                f"{per_group * self.groups} input channels, got {channels}"
            )
        if outputs is not None and outputs % self.groups:
            raise ValueError(f"{self}: output channels must be a multiple of groups={self.groups}, got {outputs}")
        if outputs is not None and g_shape[0] is not None and outputs != g_shape[0]:
            raise ValueError(f"{self}: filters make {outputs} output channels, the gradient has {g_shape[0]}")
        for axis, (n, size, found) in enumerate(zip(x_shape[1:3], W_shape[1:3], g_shape[1:3], strict=True), 1):
            if n is None or size is None:
                continue
            if n + 2 * self.pad < size:
                pixels = n + 2 * self.pad
                raise ValueError(f"{self}: filters of size {size} need at least as many pixels, got {pixels} padded")
            expected = windows_along(n, size, self.stride, self.pad)
            if found is not None and found != expected:
                raise ValueError(f"{self}: the gradient must have {expected} outputs along axis {axis}, got {found}")


class Convolution(_ConvolutionOp):
    """Compute y = x * W, of shape (outputs, out_height, out_width, batch). x and W have one dtype, float32 or float64.

    Raises:
        ValueError: channels, groups or sizes are inconsistent.
        TypeError: an input has another dtype or number of axes.
    """

    def make_node(self, x: TensorLike, W: TensorLike) -> Apply:
        x = float_tensor(self, "x", x)
        W = float_tensor(self, "W", W)
        dtype = same_dtype(self, x, W)
        self.check(x.type.shape, W.type.shape)
        return self.apply([x, W], [dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        x, W = input_shapes
        out_height, out_width = (windows_along(x[axis], W[axis], self.stride, self.pad) for axis in (1, 2))
        return [(W[3], out_height, out_width, x[3])]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        x, W = inputs
        self.check(x.shape, W.shape)
        y = np.empty(self.array_shapes(x.shape, W.shape)[0], x.dtype)
        return (forward(x, W, *self.geometry, out=y),)

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        x, W = inputs
        (g,) = cotangents
        return [
            ConvolutionInputGradient(*self.geometry)(W, g, *height_and_width(x)),
            ConvolutionFilterGradient(*self.geometry)(x, g, *height_and_width(W)),
        ]


class ConvolutionInputGradient(_ConvolutionOp):
    """Adjoint of x -> x * W: maps g to images of height x width pixels."""

    def make_node(self, W: TensorLike, g: TensorLike, height: TensorLike, width: TensorLike) -> Apply:
        W = float_tensor(self, "W", W)
        g = float_tensor(self, "g", g)
        lengths = [length_tensor(self, "height", height), length_tensor(self, "width", width)]
        dtype = same_dtype(self, W, g)
        static = [static_length(length(n)) for n in lengths]
        self.check((None, *static, None), W.type.shape, g.type.shape)
        return self.apply([W, g, *lengths], [dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        W, g = input_shapes[:2]
        channels = None if W[0] is None else W[0] * self.groups
        return [(channels, length(inputs[2]), length(inputs[3]), g[3])]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        W, g = inputs[:2]
        height, width = map(int, inputs[2:])
        dx = np.empty((W.shape[0] * self.groups, height, width, g.shape[3]), g.dtype)
        self.check(dx.shape, W.shape, g.shape)
        return (input_gradient(W, g, *self.geometry, out=dx),)

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True], [True], [False], [False]]

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        W, g = inputs[:2]
        (dx,) = cotangents
        return [
            ConvolutionFilterGradient(*self.geometry)(dx, g, *height_and_width(W)),
            Convolution(*self.geometry)(dx, W),
            DisconnectedType()(),
            DisconnectedType()(),
        ]


class ConvolutionFilterGradient(_ConvolutionOp):
    """Adjoint of W -> x * W: accumulates products of x and g into filters of filter_height x filter_width."""

    def make_node(
        self, x: TensorLike, g: TensorLike, filter_height: TensorLike, filter_width: TensorLike
    ) -> Apply:
        x = float_tensor(self, "x", x)
        g = float_tensor(self, "g", g)
        lengths = [
            length_tensor(self, "filter_height", filter_height),
            length_tensor(self, "filter_width", filter_width),
        ]
        dtype = same_dtype(self, x, g)
        static = [static_length(length(n)) for n in lengths]
        self.check(x.type.shape, (None, *static, g.type.shape[0]), g.type.shape)
        return self.apply([x, g, *lengths], [dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        x, g = input_shapes[:2]
        per_group = None if x[0] is None else x[0] // self.groups
        return [(per_group, length(inputs[2]), length(inputs[3]), g[0])]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        x, g = inputs[:2]
        filter_height, filter_width = map(int, inputs[2:])
        dW = np.empty((x.shape[0] // self.groups, filter_height, filter_width, g.shape[0]), g.dtype)
        self.check(x.shape, dW.shape, g.shape)
        return (filter_gradient(x, g, *self.geometry, out=dW),)

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True], [True], [False], [False]]

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        x, g = inputs[:2]
        (dW,) = cotangents
        return [
            ConvolutionInputGradient(*self.geometry)(dW, g, *height_and_width(x)),
            Convolution(*self.geometry)(x, dW),
            DisconnectedType()(),
            DisconnectedType()(),
        ]


def forward(x: np.ndarray, W: np.ndarray, stride: int, pad: int, groups: int, out: np.ndarray) -> np.ndarray:
    """Write x * W to out, one filter pixel at a time, and return out."""
    out[...] = 0
    for xg, Wg, yg in _groups(groups, (_padded(x, pad), 0), (W, 3), (out, 0)):
        for i, j, pixels in _taps(xg, W, out, stride):
            yg += np.tensordot(Wg[:, i, j], pixels, axes=(0, 0))
    return out


def input_gradient(
    W: np.ndarray, g: np.ndarray, stride: int, pad: int, groups: int, out: np.ndarray
) -> np.ndarray:
    """Write the adjoint of x -> x * W at g to out, which has the shape of the images, and return out."""
    channels, height, width, batch = out.shape
    padded = np.zeros((channels, height + 2 * pad, width + 2 * pad, batch), out.dtype)
    for dxg, Wg, gg in _groups(groups, (padded, 0), (W, 3), (g, 0)):
        for i, j, pixels in _taps(dxg, W, g, stride):
            pixels += np.tensordot(Wg[:, i, j], gg, axes=(1, 0))
    out[...] = padded[:, pad : pad + height, pad : pad + width]
    return out


def filter_gradient(
    x: np.ndarray, g: np.ndarray, stride: int, pad: int, groups: int, out: np.ndarray
) -> np.ndarray:
    """Write the adjoint of W -> x * W at g to out, which has the shape of the filters, and return out."""
    for xg, dWg, gg in _groups(groups, (_padded(x, pad), 0), (out, 3), (g, 0)):
        for i, j, pixels in _taps(xg, out, g, stride):
            dWg[:, i, j] = np.tensordot(pixels, gg, axes=((1, 2, 3), (1, 2, 3)))
    return out


def _padded(x: np.ndarray, pad: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x


def _groups(groups: int, *arrays: tuple[np.ndarray, int]) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield for each group a view of every array; each array comes with the axis of its channels."""
    return zip(*(np.split(array, groups, axis) for array, axis in arrays), strict=True)


def _taps(padded: np.ndarray, W: np.ndarray, y: np.ndarray, stride: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (i, j, view) per filter pixel: the padded image pixels it multiplies, one per output pixel."""
    out_height, out_width = y.shape[1:3]
    for i in range(W.shape[1]):
        for j in range(W.shape[2]):
            row_slice = slice(i, i + stride * (out_height - 1) + 1, stride)
            yield i, j, padded[:, row_slice, j : j + stride * (out_width - 1) + 1 : stride]
