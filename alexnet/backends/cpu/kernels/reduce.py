"""Sums over the last axes (bias gradients) on the CPU; the loop is in reduce.c."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.tensor.math import Sum

from alexnet.native import compiler
from alexnet.ops.registry import Run, cpu_kernel

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(Sum)
def row_sums(op: Sum, node: Apply) -> Run | None:
    x_type = node.inputs[0].type
    y_type = node.outputs[0].type
    kept = y_type.ndim
    last_axes = tuple(range(kept, x_type.ndim))
    axes = tuple(range(x_type.ndim)) if op.axis is None else tuple(sorted(op.axis))
    if not last_axes or axes != last_axes or {x_type.dtype, y_type.dtype} != {"float32"}:
        return None
    loop = compiler.function(SOURCE, "row_sums", "aann", can_fail=True)

    def run(x: np.ndarray) -> tuple[np.ndarray]:
        y = np.empty(x.shape[:kept], np.float32)
        loop(np.ascontiguousarray(x), y, y.size, x.size // max(y.size, 1))
        return (y,)

    return run
