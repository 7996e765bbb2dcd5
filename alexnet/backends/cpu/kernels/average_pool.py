"""Average pooling on the CPU; the loops are in average_pool.c."""

from pathlib import Path

import numpy as np

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler
from alexnet.ops import AveragePool, AveragePoolGradient

SOURCE = Path(__file__).with_suffix(".c")


@kernel.register(AveragePool)
def average_pool(op, node):
    loop = compiler.function(SOURCE, "average_pool", "aannnnnnnn")

    def run(x):
        op.check(x.shape)
        x, (shape,) = np.ascontiguousarray(x), op.shapes(None, [x.shape])
        y = allocator.empty(shape, np.float32)
        loop(x, y, *x.shape, *shape[1:3], op.size, op.stride)
        return (y,)

    return run


@kernel.register(AveragePoolGradient)
def average_pool_gradient(op, node):
    loop = compiler.function(SOURCE, "average_pool_gradient", "aannnnnnnn")

    def run(g, height, width):
        op.check(g.shape, int(height), int(width))
        g, dx = np.ascontiguousarray(g), allocator.empty((g.shape[0], int(height), int(width), g.shape[3]), np.float32)
        loop(g, dx, *dx.shape, *g.shape[1:3], op.size, op.stride)
        return (dx,)

    return run
