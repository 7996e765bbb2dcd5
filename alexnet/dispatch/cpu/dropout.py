"""Dropout on the CPU: the loop is in dropout.c; the keys are the reference's."""

import numpy as np

from alexnet.dispatch.cpu import build, pool
from alexnet.dispatch.cpu.registry import kernel
from alexnet.ops import Dropout
from alexnet.ops.dropout import keys


@kernel.register(Dropout)
def dropout(op, node):
    loop = build.function("dropout", "dropout", "aanuuuf")
    scale = 1 / (1 - op.rate)

    def run(x, seed, step):
        x, y = np.ascontiguousarray(x), pool.empty(x.shape, np.float32)
        loop(x, y, x.size, *keys(int(seed), op.stream, int(step)), op.threshold, scale)
        return (y,)

    return run
