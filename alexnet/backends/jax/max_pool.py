"""Max pooling and its gradient, elementwise over the pixels of a window, so that XLA fuses them with adjacent Ops.

Pixel (i, j) of all windows is one strided slice of the padded image. The gradient puts g back at these positions by
interior padding, and adds the results. There is no scatter, so the order of summation is fixed.
"""

import jax.numpy as jnp
from jax import lax
from pytensor.link.jax.dispatch import jax_funcify

from alexnet.ops import MaxPool, MaxPoolGradient


@jax_funcify.register(MaxPool)
def max_pool(op, **kwargs):
    def run(x):
        op.check(x.shape)
        (_, rows, columns, _), _ = op.shapes(None, [x.shape])
        shape = x.shape[0], rows, columns, x.shape[3]
        lowest = jnp.array(-jnp.inf, x.dtype)
        y, index = jnp.full(shape, lowest), jnp.broadcast_to(op.first(rows, columns)[:, :, None], shape)
        x = lax.pad(x, lowest, [(0, 0, 0), *[(op.pad, op.pad, 0)] * 2, (0, 0, 0)])
        for k, (i, j) in pixels(op.size):
            ends = x.shape[0], i + op.stride * (rows - 1) + 1, j + op.stride * (columns - 1) + 1, x.shape[3]
            pixel = lax.slice(x, (0, i, j, 0), ends, (1, op.stride, op.stride, 1))
            higher = ~(pixel <= y) & (y == y)                       # NaN compares higher than any number
            y, index = jnp.where(higher, pixel, y), jnp.where(higher, jnp.uint8(k), index)
        return y, index

    return run


@jax_funcify.register(MaxPoolGradient)
def max_pool_gradient(op, **kwargs):
    def run(g, index, height, width):
        height, width = int(height), int(width)
        op.check(g.shape, index.shape, height, width)
        dx = None
        for k, (i, j) in pixels(op.size):
            own = jnp.where(index == jnp.uint8(k), g, 0)
            rows = between(height, i - op.pad, op.stride, g.shape[1])
            columns = between(width, j - op.pad, op.stride, g.shape[2])
            spread = lax.pad(own, jnp.zeros((), g.dtype), [(0, 0, 0), rows, columns, (0, 0, 0)])
            dx = spread if dx is None else dx + spread
        return dx

    return run


def pixels(size):
    """Iterate over the pixels of a window: index k and position (i, j)."""
    return enumerate((i, j) for i in range(size) for j in range(size))


def between(n, place, stride, windows):
    """Return (low, high, interior) for lax.pad, which puts one value per window at its pixel `place`, along n pixels.

    Negative padding crops positions outside the image.
    """
    return place, n - (place + stride * (windows - 1) + 1), stride - 1
