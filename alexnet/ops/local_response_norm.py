"""Local response normalisation across channels, and its gradient.

    y[c] = x[c] / s[c] ** beta,   s[c] = k + alpha * sum of x[j] ** 2 over |j - c| <= n // 2

alpha is not divided by n (Caffe and PyTorch divide it).

Source: Krizhevsky et al. 2012, section 3.3.
"""

from collections.abc import Sequence

import numpy as np
from pytensor.gradient import grad_not_implemented
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import TensorLike

from alexnet.ops.base import Inputs, Shape, ShapedOp, float_tensor, same_dtype, whole_number


class _LRNOp(ShapedOp):
    """Base class of the two Ops: n (channels in the window, odd), k, alpha and beta."""

    __props__ = ("n", "k", "alpha", "beta")

    def __init__(self, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> None:
        self.n = whole_number("LRN window n", n, least=1)
        self.k = float(k)
        self.alpha = float(alpha)
        self.beta = float(beta)
        if self.n % 2 == 0:
            raise ValueError(f"LRN window n must be a positive odd number, got {n}")
        if not self.k > 0:
            raise ValueError(f"LRN k must be positive, or a black image divides by zero, got {k}")
        if not self.alpha >= 0:
            raise ValueError(f"LRN alpha must not be negative, got {alpha}")

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        return [input_shapes[0]]

    def window_sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over the n channels around each channel, with zero padding at both ends."""
        half = self.n // 2
        channels = len(values)
        padded = np.pad(values, ((half, half), (0, 0), (0, 0), (0, 0)))
        windows = (padded[start : start + channels] for start in range(self.n))
        return sum(windows, np.zeros((), values.dtype))

    def scale(self, x: np.ndarray) -> np.ndarray:
        """Return s of the formula in the module docstring."""
        return x.dtype.type(self.k) + x.dtype.type(self.alpha) * self.window_sum(x * x)


class LocalResponseNorm(_LRNOp):
    """Compute y = x / (k + alpha * sum of x ** 2 over n channels) ** beta; x is float (channel, row, column, batch)."""

    def make_node(self, x: TensorLike) -> Apply:
        x = float_tensor(self, "x", x)
        return self.apply([x], [x.type.dtype])

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        (x,) = inputs
        return (x * self.scale(x) ** x.dtype.type(-self.beta),)

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        return [LRNGradient(self.n, self.k, self.alpha, self.beta)(inputs[0], cotangents[0])]


class LRNGradient(_LRNOp):
    """Compute the gradient of LRN.

        dx[c] = g[c] * s[c] ** -beta - 2 alpha beta x[c] * sum of (g x s ** (-beta - 1))[j] over |j - c| <= n // 2
    """

    def make_node(self, x: TensorLike, g: TensorLike) -> Apply:
        x = float_tensor(self, "x", x)
        g = float_tensor(self, "g", g)
        return self.apply([x, g], [same_dtype(self, x, g)])

    def check(self, x_shape: tuple[int, ...], g_shape: tuple[int, ...]) -> None:
        """Raise ValueError if the gradient does not have the shape of the images."""
        if g_shape != x_shape:
            raise ValueError(f"{self}: g must have the shape of x, {x_shape}, got {g_shape}")

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        x, g = inputs
        self.check(x.shape, g.shape)
        s = self.scale(x)
        real = x.dtype.type
        direct = g * s ** real(-self.beta)
        return (direct - real(2 * self.alpha * self.beta) * x * self.window_sum(direct * x / s),)

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        comment = "second derivatives of LRN are not offered"
        return [grad_not_implemented(self, i, variable, comment) for i, variable in enumerate(inputs)]
