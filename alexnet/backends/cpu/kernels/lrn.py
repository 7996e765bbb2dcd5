"""Local response normalisation on the CPU; the loops are in lrn.c."""

from pathlib import Path

import numpy as np

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler
from alexnet.ops import LRN, LRNGradient

SOURCE = Path(__file__).with_suffix(".c")


def _loop_arguments(op, x):
    """Return (channels, pixels, window, k, alpha, beta); clips the window, since wider ones give the same result."""
    channels = x.shape[0]
    return channels, x.size // max(channels, 1), min(op.n, 2 * channels + 1), op.k, op.alpha, op.beta


@kernel.register(LRN)
def lrn(op, node):
    loop = compiler.function(SOURCE, "lrn", "aannnfff")

    def run(x):
        x, y = np.ascontiguousarray(x), allocator.empty(x.shape, np.float32)
        loop(x, y, *_loop_arguments(op, x))
        return (y,)

    return run


@kernel.register(LRNGradient)
def lrn_gradient(op, node):
    loop = compiler.function(SOURCE, "lrn_gradient", "aaannnfff", can_fail=True)

    def run(x, g):
        x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
        dx = allocator.empty(x.shape, np.float32)
        loop(x, g, dx, *_loop_arguments(op, x))
        return (dx,)

    return run
