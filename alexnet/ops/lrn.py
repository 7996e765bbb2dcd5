"""Local response normalisation across channels, and its gradient.

    y[c] = x[c] / s[c] ** beta,   s[c] = k + alpha * sum of x[j] ** 2 over |j - c| <= n // 2

alpha is not divided by n (Caffe and PyTorch divide it).

Source: Krizhevsky et al. 2012, section 3.3.
"""

import numpy as np
from pytensor.gradient import grad_not_implemented

from alexnet.ops.base import ShapedOp, float_tensor, same_dtype, whole_number


class _LRNOp(ShapedOp):
    """Base class of the two Ops: n (channels in the window, odd), k, alpha and beta."""

    __props__ = ("n", "k", "alpha", "beta")

    def __init__(self, n=5, k=2.0, alpha=1e-4, beta=0.75):
        self.n = whole_number("LRN window n", n, least=1)
        self.k, self.alpha, self.beta = float(k), float(alpha), float(beta)
        if self.n % 2 == 0:
            raise ValueError(f"LRN window n must be a positive odd number, got {n}")
        if not self.k > 0:
            raise ValueError(f"LRN k must be positive, or a black image divides by zero, got {k}")
        if not self.alpha >= 0:
            raise ValueError(f"LRN alpha must not be negative, got {alpha}")

    def shapes(self, inputs, input_shapes):
        return [input_shapes[0]]

    def window_sum(self, values):
        """Return the sum over the n channels around each channel, with zero padding at both ends."""
        half, channels = self.n // 2, len(values)
        padded = np.pad(values, ((half, half), (0, 0), (0, 0), (0, 0)))
        return sum(padded[start : start + channels] for start in range(self.n))

    def scale(self, x):
        """Return s of the formula in the module docstring."""
        return x.dtype.type(self.k) + x.dtype.type(self.alpha) * self.window_sum(x * x)


class LRN(_LRNOp):
    """Compute y = x / (k + alpha * sum of x ** 2 over n channels) ** beta; x is float (channel, row, column, batch)."""

    def make_node(self, x):
        x = float_tensor(self, "x", x)
        return self.apply([x], [x.type.dtype])

    def perform(self, node, inputs, outputs):
        (x,) = inputs
        outputs[0][0] = x * self.scale(x) ** x.dtype.type(-self.beta)

    def pullback(self, inputs, outputs, cotangents):
        return [LRNGradient(self.n, self.k, self.alpha, self.beta)(inputs[0], cotangents[0])]


class LRNGradient(_LRNOp):
    """Compute the gradient of LRN.

        dx[c] = g[c] * s[c] ** -beta - 2 alpha beta x[c] * sum of (g x s ** (-beta - 1))[j] over |j - c| <= n // 2
    """

    def make_node(self, x, g):
        x, g = float_tensor(self, "x", x), float_tensor(self, "g", g)
        return self.apply([x, g], [same_dtype(self, x, g)])

    def perform(self, node, inputs, outputs):
        x, g = inputs
        s, real = self.scale(x), x.dtype.type
        direct = g * s ** real(-self.beta)
        outputs[0][0] = direct - real(2 * self.alpha * self.beta) * x * self.window_sum(direct * x / s)

    def pullback(self, inputs, outputs, cotangents):
        comment = "second derivatives of LRN are not offered"
        return [grad_not_implemented(self, i, variable, comment) for i, variable in enumerate(inputs)]
