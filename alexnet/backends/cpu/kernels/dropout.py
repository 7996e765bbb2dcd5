"""Dropout on the CPU; the loop is in dropout.c, and the keys are those of the NumPy reference."""

from pathlib import Path

import numpy as np

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler
from alexnet.ops import Dropout
from alexnet.ops.dropout import keys

SOURCE = Path(__file__).with_suffix(".c")


@kernel.register(Dropout)
def dropout(op, node):
    loop = compiler.function(SOURCE, "dropout", "aanuuuf")
    scale = 1 / (1 - op.rate)

    def run(x, seed, step):
        x, y = np.ascontiguousarray(x), allocator.empty(x.shape, np.float32)
        loop(x, y, x.size, *keys(int(seed), op.stream, int(step)), op.threshold, scale)
        return (y,)

    return run
