"""Average pooling without padding, and its adjoint, which distributes g evenly over each window.

    y[c, r, s, b] = sum over i, j < size of x[c, r * stride + i, s * stride + j, b] / size**2

Source: Szegedy et al. 2014, section 5 (7 x 7 before the classifier, 5 x 5 with stride 3 before the
auxiliary classifiers).
"""

import numpy as np
from pytensor.gradient import DisconnectedType

from alexnet.ops.base import float_tensor, integer_tensor, length, row_and_column_lengths
from alexnet.ops.windows import WindowOp


class AveragePool(WindowOp):
    """Compute the mean of each window of x; x is float (channel, row, column, batch).

    Raises:
        ValueError: the window is larger than the image.
    """

    def make_node(self, x):
        x = float_tensor(self, "x", x)
        self.check(x.type.shape)
        return self.apply([x], [x.type.dtype])

    def shapes(self, inputs, input_shapes):
        channels, height, width, batch = input_shapes[0]
        return [(channels, *self.pooled(height, width), batch)]

    def perform(self, node, inputs, outputs):
        (x,) = inputs
        self.check(x.shape)
        ((_, rows, columns, _),) = self.shapes(None, [x.shape])
        outputs[0][0] = sum(self.views(x, rows, columns)) * x.dtype.type(1 / self.size**2)

    def pullback(self, inputs, outputs, cotangents):
        adjoint = AveragePoolGradient(self.size, self.stride)
        return [adjoint(cotangents[0], *row_and_column_lengths(inputs[0]))]


class AveragePoolGradient(WindowOp):
    """Compute dx with height x width pixels: for each pixel, the sum of g over the windows that cover it, / size**2."""

    def make_node(self, g, height, width):
        g = float_tensor(self, "g", g)
        lengths = [integer_tensor(self, name, n, "int64", 0) for name, n in (("height", height), ("width", width))]
        return self.apply([g, *lengths], [g.type.dtype])

    def shapes(self, inputs, input_shapes):
        channels, _, _, batch = input_shapes[0]
        return [(channels, length(inputs[1]), length(inputs[2]), batch)]

    def check(self, g_shape, height, width):
        """Raise ValueError if g does not have the shape that pooling of height x width pixels produces."""
        pooled = tuple(self.pooled(height, width))
        if g_shape[1:3] != pooled:
            raise ValueError(f"{self}: g must have {pooled} rows and columns, got shape {g_shape}")

    def perform(self, node, inputs, outputs):
        g, height, width = inputs
        self.check(g.shape, int(height), int(width))
        dx = np.zeros((g.shape[0], int(height), int(width), g.shape[3]), g.dtype)
        share = g * g.dtype.type(1 / self.size**2)
        for pixels in self.views(dx, *g.shape[1:3]):
            pixels += share
        outputs[0][0] = dx

    def connection_pattern(self, node):
        return [[True], [False], [False]]

    def pullback(self, inputs, outputs, cotangents):
        return [AveragePool(self.size, self.stride)(cotangents[0]), *(DisconnectedType()() for _ in inputs[1:])]
