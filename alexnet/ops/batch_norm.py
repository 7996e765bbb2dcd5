"""Batch normalisation of each channel, optionally followed by ReLU, and its gradient.

    y[c] = f(gamma[c] * (x[c] - mean[c]) / sqrt(variance[c] + epsilon) + beta[c]),    f: identity or max(., 0)

mean and variance are those of the channel over rows, columns and batch. The variance is the mean squared deviation: it
is divided by the number of values n, not by n - 1.

Source: Ioffe and Szegedy 2015, algorithm 1; section 3.1 for the gradient.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pytensor.gradient import DisconnectedType, grad_not_implemented
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import TensorLike
from pytensor.tensor.variable import TensorVariable

from alexnet.ops.base import Inputs, Shape, ShapedOp, float_tensor, same_dtype

PIXELS = 1, 2, 3                                 # the axes of a channel


class _BatchNormOp(ShapedOp):
    """Base class of the two Ops.

    epsilon  added to the variance; positive, so that a constant channel does not divide by zero
    relu     whether ReLU follows
    """

    __props__ = ("epsilon", "relu")

    def __init__(self, epsilon: float = 1e-5, relu: bool = False) -> None:
        self.epsilon = float(epsilon)
        self.relu = bool(relu)
        if not self.epsilon > 0:
            raise ValueError(f"batch normalisation needs a positive epsilon, got {epsilon}")

    def inverse_deviation(self, variance: np.ndarray) -> np.ndarray:
        """Return 1 / sqrt(variance + epsilon)."""
        return 1 / np.sqrt(variance + variance.dtype.type(self.epsilon))

    def of_channels(self, x: TensorVariable, **vectors: TensorLike) -> list[TensorVariable]:
        """Return vectors with one value per channel of x as symbolic variables. Raises TypeError or ValueError."""
        variables = [float_tensor(self, name, value, ndim=1) for name, value in vectors.items()]
        same_dtype(self, x, *variables)
        for name, variable in zip(vectors, variables, strict=True):
            if None not in (n := variable.type.shape[0], x.type.shape[0]) and n != x.type.shape[0]:
                raise ValueError(f"{self}: {name} must have one value for each of {x.type.shape[0]} channels, got {n}")
        return variables

    def check(self, x_shape: tuple[int, ...], *shapes: tuple[int, ...]) -> None:
        """Raise ValueError if there are no pixels, or if one of the shapes is not (channels,)."""
        channels = x_shape[:1]
        if 0 in x_shape[1:]:
            raise ValueError(f"{self}: a channel without values has no mean, got shape {x_shape}")
        for shape in shapes:
            if shape != channels:
                raise ValueError(f"{self}: there must be one value for each of {channels[0]} channels, got {shape}")


class BatchNorm2D(_BatchNormOp):
    """Normalise the channels of x, float (channel, row, column, batch); gamma and beta are (channel,).

    Returns:
        y: the normalised values, of the shape of x.
        mean, variance: the statistics of each channel, (channel,).
    """

    def make_node(self, x: TensorLike, gamma: TensorLike, beta: TensorLike) -> Apply:
        x = float_tensor(self, "x", x)
        return self.apply([x, *self.of_channels(x, gamma=gamma, beta=beta)], [x.type.dtype] * 3)

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        return [input_shapes[0], input_shapes[0][:1], input_shapes[0][:1]]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        x, gamma, beta = inputs
        self.check(x.shape, gamma.shape, beta.shape)
        mean = x.mean(PIXELS, dtype=np.float64).astype(x.dtype)
        centred = x - over_pixels(mean)
        variance = np.square(centred, dtype=np.float64).mean(PIXELS).astype(x.dtype)
        y = centred * over_pixels(gamma * self.inverse_deviation(variance)) + over_pixels(beta)
        return np.maximum(y, x.dtype.type(0)) if self.relu else y, mean, variance

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        x, gamma, _ = inputs
        y, mean, variance = outputs
        dy, dmean, dvariance = cotangents
        after_relu = [y] if self.relu else []
        dx, dgamma, dbeta = (variable.zeros_like() for variable in inputs)
        if is_connected(dy):
            dx, dgamma, dbeta = BatchNormGradient(self.epsilon, self.relu)(x, gamma, mean, variance, dy, *after_relu)
        values = x.size // x.shape[0]
        if is_connected(dmean):
            dx += over_pixels(dmean / values)
        if is_connected(dvariance):
            dx += over_pixels(2 * dvariance / values) * (x - over_pixels(mean))
        return [dx, dgamma, dbeta]


class BatchNormGradient(_BatchNormOp):
    """Compute the gradients of x, gamma and beta from the gradient g of y.

        s = 1 / sqrt(variance + epsilon),   n = (x - mean) * s,   d = g where y > 0 or there is no ReLU, else 0
        dbeta = sum of d,   dgamma = sum of d n,   dx = gamma s (d - mean of d - n * mean of d n)

    The inputs are x, gamma, mean, variance and g, and with ReLU also y.
    """

    def make_node(
        self, x: TensorLike, gamma: TensorLike, mean: TensorLike, variance: TensorLike, g: TensorLike, *y: TensorLike
    ) -> Apply:
        if len(y) != self.relu:
            raise TypeError(f"{self}: y must be given if and only if ReLU follows, got {len(y)} arrays")
        x = float_tensor(self, "x", x)
        vectors = self.of_channels(x, gamma=gamma, mean=mean, variance=variance)
        images = [float_tensor(self, name, value) for name, value in zip("gy", (g, *y), strict=False)]
        dtype = same_dtype(self, x, *images)
        return self.apply([x, *vectors, *images], [dtype] * 3)

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        return [input_shapes[0], input_shapes[0][:1], input_shapes[0][:1]]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        x, gamma, mean, variance, g, *y = inputs
        self.check_gradient(x, (gamma, mean, variance), (g, *y))
        s = self.inverse_deviation(variance)
        normalised = (x - over_pixels(mean)) * over_pixels(s)
        d = np.where(y[0] > 0, g, x.dtype.type(0)) if self.relu else g
        dbeta, dgamma = (each.sum(PIXELS, dtype=np.float64) for each in (d, d * normalised))
        values = x.size // len(x)
        mean_d, mean_dn = (over_pixels((each / values).astype(x.dtype)) for each in (dbeta, dgamma))
        dx = over_pixels(gamma * s) * (d - mean_d - normalised * mean_dn)
        return dx, dgamma.astype(x.dtype), dbeta.astype(x.dtype)

    def check_gradient(self, x: np.ndarray, vectors: Sequence[np.ndarray], images: Sequence[np.ndarray]) -> None:
        """Raise ValueError if an array does not have the shape of the images or of their channels."""
        self.check(x.shape, *(vector.shape for vector in vectors))
        for image in images:
            if image.shape != x.shape:
                raise ValueError(f"{self}: g and y must have the shape of x, {x.shape}, got {image.shape}")

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        comment = "second derivatives of batch normalisation are not offered"
        return [grad_not_implemented(self, i, variable, comment) for i, variable in enumerate(inputs)]


def is_connected(cotangent: Variable) -> bool:
    return not isinstance(cotangent.type, DisconnectedType)


def over_pixels(vector: Any) -> Any:
    """Return a vector or symbolic vector (channel,) with three axes that broadcast over the pixels of the channels."""
    return vector.reshape((-1, 1, 1, 1)) if isinstance(vector, np.ndarray) else vector.dimshuffle(0, "x", "x", "x")
