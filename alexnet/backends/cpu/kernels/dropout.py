"""Dropout on the CPU; the loop is in dropout.c, and the keys are those of the NumPy reference."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.backends.cpu import allocator
from alexnet.backends.registry import Run, cpu_kernel
from alexnet.native import compiler
from alexnet.ops import InvertedDropout
from alexnet.ops.dropout import keys

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(InvertedDropout)
def dropout(op: InvertedDropout, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "dropout", "aanuuuf")
    scale = 1 / (1 - op.rate)

    def run(x: np.ndarray, seed: np.ndarray, step: np.ndarray) -> tuple[np.ndarray]:
        x = np.ascontiguousarray(x)
        y = allocator.empty(x.shape, np.float32)
        loop(x, y, x.size, *keys(int(seed), op.stream, int(step)), op.threshold, scale)
        return (y,)

    return run
