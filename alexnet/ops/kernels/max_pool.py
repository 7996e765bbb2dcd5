"""Max pooling on the CPU; the loops are in max_pool.c."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.native import allocator, compiler
from alexnet.ops import MaxPool2D, MaxPoolGradient
from alexnet.ops.kernels.contiguous import contiguous
from alexnet.ops.registry import Run, cpu_kernel

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(MaxPool2D, float64=True)
def max_pool(op: MaxPool2D, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "max_pool", "aaannnnnnnnn", dtype=node.outputs[0].type.dtype)

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        op.check(x.shape)
        x = contiguous(x)
        shape = op.array_shapes(x.shape)[0]
        y = allocator.empty(shape, x.dtype)
        index = allocator.empty(shape, np.uint8)
        loop(x, y, index, *x.shape, *shape[1:3], op.size, op.stride, op.pad)
        return y, index

    return run


@cpu_kernel(MaxPoolGradient, float64=True)
def max_pool_gradient(op: MaxPoolGradient, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "max_pool_gradient", "aaannnnnnnnn", dtype=node.outputs[0].type.dtype)

    def run(g: np.ndarray, index: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray]:
        op.check_gradient(g.shape, index.shape, int(height), int(width))
        g = contiguous(g)
        index = contiguous(index)
        dx = allocator.empty((g.shape[0], int(height), int(width), g.shape[3]), g.dtype)
        loop(g, index, dx, *dx.shape, *g.shape[1:3], op.size, op.stride, op.pad)
        return (dx,)

    return run
