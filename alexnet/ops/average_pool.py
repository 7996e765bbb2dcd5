"""Average pooling without padding, and its adjoint, which distributes g evenly over each window.

    y[c, r, s, b] = sum over i, j < size of x[c, r * stride + i, s * stride + j, b] / size**2

Source: Szegedy et al. 2014, section 5 (7 x 7 before the classifier, 5 x 5 with stride 3 before the
auxiliary classifiers).
"""

from collections.abc import Sequence

import numpy as np
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import TensorLike

from alexnet.ops.base import Inputs, Shape, WindowOp, float_tensor, height_and_width, length, length_tensor


class AveragePool2D(WindowOp):
    """Compute the mean of each window of x; x is float (channel, row, column, batch).

    Raises:
        ValueError: the window is larger than the image.
    """

    def make_node(self, x: TensorLike) -> Apply:
        x = float_tensor(self, "x", x)
        self.check(x.type.shape)
        return self.apply([x], [x.type.dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        channels, height, width, batch = input_shapes[0]
        return [(channels, *self.pooled(height, width), batch)]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        self.check(x.shape)
        ((_, out_height, out_width, _),) = self.array_shapes(x.shape)
        return (sum(self.views(x, out_height, out_width)) * x.dtype.type(1 / self.size**2),)

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        adjoint = AveragePoolGradient(self.size, self.stride)
        return [adjoint(cotangents[0], *height_and_width(inputs[0]))]


class AveragePoolGradient(WindowOp):
    """Compute dx with height x width pixels: for each pixel, the sum of g over the windows that cover it, / size**2."""

    def make_node(self, g: TensorLike, height: TensorLike, width: TensorLike) -> Apply:
        g = float_tensor(self, "g", g)
        lengths = [length_tensor(self, "height", height), length_tensor(self, "width", width)]
        return self.apply([g, *lengths], [g.type.dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        channels, _, _, batch = input_shapes[0]
        return [(channels, length(inputs[1]), length(inputs[2]), batch)]

    def check_gradient(self, g_shape: tuple[int, ...], height: int, width: int) -> None:
        """Raise ValueError if g does not have the shape that pooling of height x width pixels produces."""
        pooled = self.pooled(height, width)
        if g_shape[1:3] != pooled:
            raise ValueError(f"{self}: g must have {pooled} rows and columns, got shape {g_shape}")

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        g = inputs[0]
        height, width = map(int, inputs[1:])
        self.check_gradient(g.shape, height, width)
        dx = np.zeros((g.shape[0], height, width, g.shape[3]), g.dtype)
        share = g * g.dtype.type(1 / self.size**2)
        for pixels in self.views(dx, *g.shape[1:3]):
            pixels += share
        return (dx,)

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True], [False], [False]]

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        return [AveragePool2D(self.size, self.stride)(cotangents[0]), *(DisconnectedType()() for _ in inputs[1:])]
