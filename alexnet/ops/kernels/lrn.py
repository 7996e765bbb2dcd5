"""Local response normalisation on the CPU; the loops are in lrn.c."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.native import allocator, compiler
from alexnet.ops import LocalResponseNorm, LRNGradient
from alexnet.ops.kernels.contiguous import contiguous
from alexnet.ops.registry import Run, cpu_kernel

SOURCE = Path(__file__).with_suffix(".c")


def _loop_arguments(op: LocalResponseNorm | LRNGradient, x: np.ndarray) -> tuple[int, int, int, float, float, float]:
    """Return (channels, pixels, window, k, alpha, beta); clips the window, since wider ones give the same result."""
    channels = x.shape[0]
    return channels, x.size // max(channels, 1), min(op.n, 2 * channels + 1), op.k, op.alpha, op.beta


@cpu_kernel(LocalResponseNorm, float64=True)
def lrn(op: LocalResponseNorm, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "lrn", "aannnrrr", dtype=node.outputs[0].type.dtype)

    def run(x: np.ndarray) -> tuple[np.ndarray]:
        x = contiguous(x)
        y = allocator.empty(x.shape, x.dtype)
        loop(x, y, *_loop_arguments(op, x))
        return (y,)

    return run


@cpu_kernel(LRNGradient, float64=True)
def lrn_gradient(op: LRNGradient, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "lrn_gradient", "aaannnrrr", can_fail=True, dtype=node.outputs[0].type.dtype)

    def run(x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray]:
        op.check(x.shape, g.shape)
        x = contiguous(x)
        g = contiguous(g)
        dx = allocator.empty(x.shape, x.dtype)
        loop(x, g, dx, *_loop_arguments(op, x))
        return (dx,)

    return run
