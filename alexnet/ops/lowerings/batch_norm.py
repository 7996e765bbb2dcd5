"""Batch normalisation and its gradient as functions of JAX arrays."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from pytensor.graph.basic import Apply

from alexnet.ops import BatchNorm2D, BatchNormGradient
from alexnet.ops.batch_norm import PIXELS
from alexnet.ops.registry import jax_lowering


@jax_lowering(BatchNorm2D)
def batch_norm(op: BatchNorm2D, node: Apply) -> Callable[..., tuple[Array, ...]]:
    def run(x: Array, gamma: Array, beta: Array) -> tuple[Array, ...]:
        mean = x.mean(PIXELS)
        centred = x - over_pixels(mean)
        variance = jnp.square(centred).mean(PIXELS)
        y = centred * over_pixels(gamma * inverse_deviation(variance, op.epsilon)) + over_pixels(beta)
        return jnp.maximum(y, 0) if op.relu else y, mean, variance

    return run


@jax_lowering(BatchNormGradient)
def batch_norm_gradient(op: BatchNormGradient, node: Apply) -> Callable[..., tuple[Array, ...]]:
    def run(
        x: Array, gamma: Array, mean: Array, variance: Array, g: Array, *y: Array
    ) -> tuple[Array, ...]:
        s = inverse_deviation(variance, op.epsilon)
        normalised = (x - over_pixels(mean)) * over_pixels(s)
        d = jnp.where(y[0] > 0, g, g.dtype.type(0)) if op.relu else g
        product = d * normalised
        mean_d, mean_dn = (over_pixels(each.mean(PIXELS)) for each in (d, product))
        dx = over_pixels(gamma * s) * (d - mean_d - normalised * mean_dn)
        return dx, product.sum(PIXELS), d.sum(PIXELS)

    return run


def inverse_deviation(variance: Array, epsilon: float) -> Array:
    """Return 1 / sqrt(variance + epsilon)."""
    return lax.rsqrt(variance + variance.dtype.type(epsilon))


def over_pixels(vector: Array) -> Array:
    """Return a vector (channel,) with three axes that broadcast over the pixels of the channels."""
    return vector[:, None, None, None]
