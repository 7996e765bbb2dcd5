"""Average pooling, as a windowed sum, and its adjoint, as the JAX transpose of that sum."""

import jax
import numpy as np
from jax import lax
from pytensor.link.jax.dispatch import jax_funcify

from alexnet.ops import AveragePool, AveragePoolGradient


@jax_funcify.register(AveragePool)
def average_pool(op, **kwargs):
    def run(x):
        op.check(x.shape)
        return means(op, x)

    return run


@jax_funcify.register(AveragePoolGradient)
def average_pool_gradient(op, **kwargs):
    def run(g, height, width):
        op.check(g.shape, int(height), int(width))
        images = jax.ShapeDtypeStruct((g.shape[0], int(height), int(width), g.shape[3]), g.dtype)
        return jax.linear_transpose(lambda x: means(op, x), images)(g)[0]

    return run


def means(op, x):
    window, strides = (1, op.size, op.size, 1), (1, op.stride, op.stride, 1)
    zero, share = np.zeros((), x.dtype), np.array(1 / op.size**2, x.dtype)          # not traced: JAX must see the 0
    return lax.reduce_window(x, zero, lax.add, window, strides, "valid") * share
