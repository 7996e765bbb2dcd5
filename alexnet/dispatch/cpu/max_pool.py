"""Max pooling on the CPU: the loops are in max_pool.c."""

import numpy as np

from alexnet.dispatch.cpu import build, pool
from alexnet.dispatch.cpu.registry import kernel
from alexnet.ops import MaxPool, MaxPoolGradient


@kernel.register(MaxPool)
def max_pool(op, node):
    loop = build.function("max_pool", "max_pool", "aaannnnnnnnn")

    def run(x):
        op.check(x.shape)
        x, shape = np.ascontiguousarray(x), op.shapes(None, [x.shape])[0]
        y, index = pool.empty(shape, np.float32), pool.empty(shape, np.uint8)
        loop(x, y, index, *x.shape, *shape[1:3], op.size, op.stride, op.pad)
        return y, index

    return run


@kernel.register(MaxPoolGradient)
def max_pool_gradient(op, node):
    loop = build.function("max_pool", "max_pool_gradient", "aaannnnnnnnn")

    def run(g, index, height, width):
        op.check(g.shape, index.shape, int(height), int(width))
        g, index = np.ascontiguousarray(g), np.ascontiguousarray(index)
        dx = pool.empty((g.shape[0], int(height), int(width), g.shape[3]), np.float32)
        loop(g, index, dx, *dx.shape, *g.shape[1:3], op.size, op.stride, op.pad)
        return (dx,)

    return run
