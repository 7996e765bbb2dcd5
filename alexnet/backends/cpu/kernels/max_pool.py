"""Max pooling on the CPU; the loops are in max_pool.c."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.backends.cpu import allocator
from alexnet.backends.registry import Run, cpu_kernel
from alexnet.native import compiler
from alexnet.ops import MaxPool2D, MaxPoolGradient

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(MaxPool2D)
def max_pool(op: MaxPool2D, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "max_pool", "aaannnnnnnnn")

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        op.check(x.shape)
        x = np.ascontiguousarray(x)
        shape = op.array_shapes(x.shape)[0]
        y = allocator.empty(shape, np.float32)
        index = allocator.empty(shape, np.uint8)
        loop(x, y, index, *x.shape, *shape[1:3], op.size, op.stride, op.pad)
        return y, index

    return run


@cpu_kernel(MaxPoolGradient)
def max_pool_gradient(op: MaxPoolGradient, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "max_pool_gradient", "aaannnnnnnnn")

    def run(g: np.ndarray, index: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray]:
        op.check_gradient(g.shape, index.shape, int(height), int(width))
        g = np.ascontiguousarray(g)
        index = np.ascontiguousarray(index)
        dx = allocator.empty((g.shape[0], int(height), int(width), g.shape[3]), np.float32)
        loop(g, index, dx, *dx.shape, *g.shape[1:3], op.size, op.stride, op.pad)
        return (dx,)

    return run
