"""Average pooling on the CPU: the loops are in average_pool.c."""

import numpy as np

from alexnet.dispatch.cpu import build, pool
from alexnet.dispatch.cpu.registry import kernel
from alexnet.ops import AveragePool, AveragePoolGradient


@kernel.register(AveragePool)
def average_pool(op, node):
    loop = build.function("average_pool", "average_pool", "aannnnnnnn")

    def run(x):
        op.check(x.shape)
        x, (shape,) = np.ascontiguousarray(x), op.shapes(None, [x.shape])
        y = pool.empty(shape, np.float32)
        loop(x, y, *x.shape, *shape[1:3], op.size, op.stride)
        return (y,)

    return run


@kernel.register(AveragePoolGradient)
def average_pool_gradient(op, node):
    loop = build.function("average_pool", "average_pool_gradient", "aannnnnnnn")

    def run(g, height, width):
        op.check(g.shape, int(height), int(width))
        g, dx = np.ascontiguousarray(g), pool.empty((g.shape[0], int(height), int(width), g.shape[3]), np.float32)
        loop(g, dx, *dx.shape, *g.shape[1:3], op.size, op.stride)
        return (dx,)

    return run
