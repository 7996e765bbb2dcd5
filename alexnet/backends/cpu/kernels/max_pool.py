"""Max pooling on the CPU; the loops are in max_pool.c."""

from pathlib import Path

import numpy as np

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler
from alexnet.ops import MaxPool, MaxPoolGradient

SOURCE = Path(__file__).with_suffix(".c")


@kernel.register(MaxPool)
def max_pool(op, node):
    loop = compiler.function(SOURCE, "max_pool", "aaannnnnnnnn")

    def run(x):
        op.check(x.shape)
        x, shape = np.ascontiguousarray(x), op.shapes(None, [x.shape])[0]
        y, index = allocator.empty(shape, np.float32), allocator.empty(shape, np.uint8)
        loop(x, y, index, *x.shape, *shape[1:3], op.size, op.stride, op.pad)
        return y, index

    return run


@kernel.register(MaxPoolGradient)
def max_pool_gradient(op, node):
    loop = compiler.function(SOURCE, "max_pool_gradient", "aaannnnnnnnn")

    def run(g, index, height, width):
        op.check(g.shape, index.shape, int(height), int(width))
        g, index = np.ascontiguousarray(g), np.ascontiguousarray(index)
        dx = allocator.empty((g.shape[0], int(height), int(width), g.shape[3]), np.float32)
        loop(g, index, dx, *dx.shape, *g.shape[1:3], op.size, op.stride, op.pad)
        return (dx,)

    return run
