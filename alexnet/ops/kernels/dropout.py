"""Dropout on the CPU; the loop is in dropout.c, and the keys are those of the NumPy reference."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.native import allocator, compiler
from alexnet.ops import InvertedDropout
from alexnet.ops.inverted_dropout import keys
from alexnet.ops.kernels.contiguous import contiguous
from alexnet.ops.registry import Run, cpu_kernel

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(InvertedDropout, float64=True)
def dropout(op: InvertedDropout, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "dropout", "aanuuur", dtype=node.outputs[0].type.dtype)
    scale = 1 / (1 - op.rate)

    def run(x: np.ndarray, seed: np.ndarray, step: np.ndarray) -> tuple[np.ndarray]:
        x = contiguous(x)
        y = allocator.empty(x.shape, x.dtype)
        loop(x, y, x.size, *keys(int(seed), op.stream, int(step)), op.threshold, scale)
        return (y,)

    return run
