"""Max pooling and its gradient, elementwise over the pixels of a window, so that XLA fuses them with adjacent Ops.

Pixel (i, j) of all windows is one strided slice of the padded image. The gradient puts g back at these positions by
interior padding, and adds the results. There is no scatter, so the order of summation is fixed.
"""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jax import Array, lax
from pytensor.graph.basic import Apply

from alexnet.ops import MaxPool2D, MaxPoolGradient
from alexnet.ops.registry import jax_lowering


@jax_lowering(MaxPool2D)
def max_pool(op: MaxPool2D, node: Apply) -> Callable[..., tuple[Array, Array]]:
    def run(x: Array) -> tuple[Array, Array]:
        op.check(x.shape)
        shape = op.array_shapes(x.shape)[0]
        out_height, out_width = shape[1:3]
        lowest = jnp.array(-jnp.inf, x.dtype)
        y = jnp.full(shape, lowest)
        index = jnp.broadcast_to(op.first(out_height, out_width)[:, :, None], shape)
        ends = [(op.pad, op.end_padding(n, windows), 0) for n, windows in zip(x.shape[1:3], shape[1:3], strict=True)]
        x = lax.pad(x, lowest, [(0, 0, 0), *ends, (0, 0, 0)])
        for k, (i, j) in pixels(op.size):
            limits = x.shape[0], i + op.stride * (out_height - 1) + 1, j + op.stride * (out_width - 1) + 1, x.shape[3]
            pixel = lax.slice(x, (0, i, j, 0), limits, (1, op.stride, op.stride, 1))
            higher = ~(pixel <= y) & (y == y)                       # NaN compares higher than any number
            y = jnp.where(higher, pixel, y)
            index = jnp.where(higher, jnp.uint8(k), index)
        return y, index

    return run


@jax_lowering(MaxPoolGradient)
def max_pool_gradient(op: MaxPoolGradient, node: Apply) -> Callable[..., Array]:
    def run(g: Array, index: Array, height: Array, width: Array) -> Array:
        op.check_gradient(g.shape, index.shape, int(height), int(width))
        dx = None
        for k, (i, j) in pixels(op.size):
            own = jnp.where(index == jnp.uint8(k), g, 0)
            rows = between(int(height), i - op.pad, op.stride, g.shape[1])
            columns = between(int(width), j - op.pad, op.stride, g.shape[2])
            spread = lax.pad(own, jnp.zeros((), g.dtype), [(0, 0, 0), rows, columns, (0, 0, 0)])
            dx = spread if dx is None else dx + spread
        return dx

    return run


def pixels(size: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Iterate over the pixels of a window: index k and position (i, j)."""
    return enumerate((i, j) for i in range(size) for j in range(size))


def between(n: int, first: int, stride: int, windows: int) -> tuple[int, int, int]:
    """Return (low, high, interior) for lax.pad, which spreads one value per window over n pixels, beginning at `first`.

    Negative padding crops positions outside the image.
    """
    return first, n - (first + stride * (windows - 1) + 1), stride - 1
