"""Local response normalisation and its gradient: sums of shifted slices, elementwise so that XLA can fuse them."""

from collections.abc import Callable

from jax import Array, lax
from pytensor.graph.basic import Apply

from alexnet.ops import LocalResponseNorm, LRNGradient
from alexnet.ops.registry import jax_lowering


@jax_lowering(LocalResponseNorm)
def lrn(op: LocalResponseNorm, node: Apply) -> Callable[..., Array]:
    def run(x: Array) -> Array:
        return x * power(scale(op, x), op.beta)

    return run


@jax_lowering(LRNGradient)
def lrn_gradient(op: LRNGradient, node: Apply) -> Callable[..., Array]:
    def run(x: Array, g: Array) -> Array:
        op.check(x.shape, g.shape)
        s = scale(op, x)
        real = x.dtype.type
        direct = g * power(s, op.beta)
        return direct - real(2 * op.alpha * op.beta) * x * window_sum(op.n, direct * x / s)

    return run


def scale(op: LocalResponseNorm | LRNGradient, x: Array) -> Array:
    """Return k + alpha * (sum of squares over the window)."""
    return x.dtype.type(op.k) + x.dtype.type(op.alpha) * window_sum(op.n, x * x)


def power(s: Array, beta: float) -> Array:
    """Return s ** -beta; for beta = 3/4, the usual value, two square roots cost a tenth of a power on a GPU."""
    if beta != 0.75:
        return s ** s.dtype.type(-beta)
    root = lax.rsqrt(s)
    return root * lax.sqrt(root)


def window_sum(n: int, values: Array) -> Array:
    """Return for each channel the sum over the n channels around it; channels outside the array count as zero."""
    channels = len(values)
    half = n // 2
    padded = lax.pad(values, values.dtype.type(0), [(half, half, 0)] + [(0, 0, 0)] * 3)
    return sum(lax.slice_in_dim(padded, start, start + channels) for start in range(n))
