"""Max pooling, which records the position of each maximum, and its gradient, which adds g at that position.

Windows start `pad` pixels before the image and end at most `pad` pixels after it. Padding is never the maximum. With
`ceil`, as in Caffe, the number of windows is rounded up: the last window of an axis may be incomplete.

Source: Krizhevsky et al. 2012, section 3.4 (overlapping windows, size 3, stride 2); BVLC Caffe,
src/caffe/layers/pooling_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
from pytensor.gradient import DisconnectedType, grad_not_implemented
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import TensorLike

from alexnet.ops.base import (
    Inputs,
    Shape,
    WindowOp,
    float_tensor,
    height_and_width,
    integer_tensor,
    length,
    length_tensor,
    whole_number,
)


class _PoolOp(WindowOp):
    """Base class of the two Ops: padded windows, and the index of a pixel within its window."""

    __props__ = ("size", "stride", "pad", "ceil")

    def __init__(self, size: int = 3, stride: int = 2, pad: int = 0, ceil: bool = False) -> None:
        super().__init__(size, stride)
        self.pad = whole_number("pooling pad", pad, least=0)
        self.ceil = bool(ceil)
        if self.size > 16:
            raise ValueError(f"pooling size must be at most 16 (its window index is a byte), got {self.size}")
        if self.pad >= self.size:
            raise ValueError(f"pooling pad must be less than the size, {self.size}, got {self.pad}")

    def end_padding(self, n: int, windows: int) -> int:
        """Return the padding after n elements: at least `pad`, and as much as the last window covers."""
        return max(self.pad, (windows - 1) * self.stride + self.size - self.pad - n)

    def first(self, out_height: int, out_width: int) -> np.ndarray:
        """Return the index of the first pixel of each window that is not padding, uint8 (out_height, out_width)."""
        i = np.maximum(self.pad - self.stride * np.arange(out_height), 0)
        j = np.maximum(self.pad - self.stride * np.arange(out_width), 0)
        return (i[:, None] * self.size + j).astype(np.uint8)


class MaxPool2D(_PoolOp):
    """Compute the maximum of each window of x and its position; x is float (channel, row, column, batch).

    A NaN in a window is its maximum.

    Returns:
        y: the maxima, of the dtype of x.
        index: uint8 of the shape of y; i * size + j for row i and column j of the first maximum in the window.

    Raises:
        ValueError: the window is larger than the image.
    """

    def make_node(self, x: TensorLike) -> Apply:
        x = float_tensor(self, "x", x)
        self.check(x.type.shape)
        return self.apply([x], [x.type.dtype, "uint8"])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        channels, height, width, batch = input_shapes[0]
        return [(channels, *self.pooled(height, width), batch)] * 2

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        self.check(x.shape)
        shape = self.array_shapes(x.shape)[0]
        out_height, out_width = shape[1:3]
        y = np.full(shape, -np.inf, x.dtype)
        index = np.empty(shape, np.uint8)
        index[:] = self.first(out_height, out_width)[:, :, None]
        ends = [(self.pad, self.end_padding(n, windows)) for n, windows in zip(x.shape[1:3], shape[1:3], strict=True)]
        padded = np.pad(x, [(0, 0), *ends, (0, 0)], constant_values=-np.inf)
        for k, pixels in enumerate(self.views(padded, out_height, out_width)):
            higher = (pixels > y) | (np.isnan(pixels) & ~np.isnan(y))
            np.copyto(y, pixels, where=higher)
            np.copyto(index, np.uint8(k), where=higher)
        return y, index

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True, False]]

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        (x,) = inputs
        gradient = MaxPoolGradient(self.size, self.stride, self.pad, self.ceil)
        return [gradient(cotangents[0], outputs[1], *height_and_width(x))]


class MaxPoolGradient(_PoolOp):
    """Compute dx with height x width pixels: each g is added to the pixel of its window that index selects."""

    def make_node(self, g: TensorLike, index: TensorLike, height: TensorLike, width: TensorLike) -> Apply:
        g = float_tensor(self, "g", g)
        index = integer_tensor(self, "index", index, "uint8", 4)
        lengths = [length_tensor(self, "height", height), length_tensor(self, "width", width)]
        return self.apply([g, index, *lengths], [g.type.dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        channels, _, _, batch = input_shapes[0]
        return [(channels, length(inputs[2]), length(inputs[3]), batch)]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        g, index = inputs[:2]
        height, width = map(int, inputs[2:])
        self.check_gradient(g.shape, index.shape, height, width)
        pad = self.pad
        rows, columns = (
            pad + n + self.end_padding(n, windows) for n, windows in zip((height, width), g.shape[1:3], strict=True)
        )
        dx = np.zeros((g.shape[0], rows, columns, g.shape[3]), g.dtype)
        for k, pixels in enumerate(self.views(dx, *g.shape[1:3])):
            pixels += np.where(index == k, g, g.dtype.type(0))
        return (np.ascontiguousarray(dx[:, pad : pad + height, pad : pad + width]),)

    def check_gradient(
        self, g_shape: tuple[int, ...], index_shape: tuple[int, ...], height: int, width: int
    ) -> None:
        """Raise ValueError if g and index do not have the shape that pooling of height x width pixels produces."""
        pooled = self.pooled(height, width)
        if g_shape != index_shape or g_shape[1:3] != pooled:
            raise ValueError(
                f"{self}: g and index must both have {pooled} rows and columns, got shapes {g_shape} and {index_shape}"
            )

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True], [False], [False], [False]]

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        refused = grad_not_implemented(self, 0, inputs[0], "second derivatives of max pooling are not offered")
        return [refused, *(DisconnectedType()() for _ in inputs[1:])]
