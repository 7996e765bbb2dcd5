"""Average pooling, as a windowed sum, and its adjoint, as the JAX transpose of that sum."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array, lax
from pytensor.graph.basic import Apply

from alexnet.ops import AveragePool2D, AveragePoolGradient
from alexnet.ops.registry import jax_lowering


@jax_lowering(AveragePool2D)
def average_pool(op: AveragePool2D, node: Apply) -> Callable[..., Array]:
    def run(x: Array) -> Array:
        op.check(x.shape)
        return means(op, x)

    return run


@jax_lowering(AveragePoolGradient)
def average_pool_gradient(op: AveragePoolGradient, node: Apply) -> Callable[..., Array]:
    def run(g: Array, height: Array, width: Array) -> Array:
        op.check_gradient(g.shape, int(height), int(width))
        images = jax.ShapeDtypeStruct((g.shape[0], int(height), int(width), g.shape[3]), g.dtype)
        return jax.linear_transpose(lambda x: means(op, x), images)(g)[0]

    return run


def means(op: AveragePool2D | AveragePoolGradient, x: Array) -> Array:
    """Return the mean of each window of x."""
    window = 1, op.size, op.size, 1
    strides = 1, op.stride, op.stride, 1
    zero = np.zeros((), x.dtype)                 # not traced: JAX must see the 0
    share = np.array(1 / op.size**2, x.dtype)
    return lax.reduce_window(x, zero, lax.add, window, strides, "valid") * share
