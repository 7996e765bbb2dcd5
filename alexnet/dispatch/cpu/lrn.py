"""Local response normalisation on the CPU: the loops are in lrn.c."""

import numpy as np

from alexnet.dispatch.cpu import build, pool
from alexnet.dispatch.cpu.registry import kernel
from alexnet.ops import LRN, LRNGradient


def _loop_arguments(op, x):
    """(channels, pixels, window, k, alpha, beta); a window wider than all channels does as well cut to them."""
    channels = x.shape[0]
    return channels, x.size // max(channels, 1), min(op.n, 2 * channels + 1), op.k, op.alpha, op.beta


@kernel.register(LRN)
def lrn(op, node):
    loop = build.function("lrn", "lrn", "aannnfff")

    def run(x):
        x, y = np.ascontiguousarray(x), pool.empty(x.shape, np.float32)
        loop(x, y, *_loop_arguments(op, x))
        return (y,)

    return run


@kernel.register(LRNGradient)
def lrn_gradient(op, node):
    loop = build.function("lrn", "lrn_gradient", "aaannnfff", can_fail=True)

    def run(x, g):
        x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
        dx = pool.empty(x.shape, np.float32)
        loop(x, g, dx, *_loop_arguments(op, x))
        return (dx,)

    return run
