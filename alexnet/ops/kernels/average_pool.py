"""Average pooling on the CPU; the loops are in average_pool.c."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.native import allocator, compiler
from alexnet.ops import AveragePool2D, AveragePoolGradient
from alexnet.ops.kernels.contiguous import contiguous
from alexnet.ops.registry import Run, cpu_kernel

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(AveragePool2D, float64=True)
def average_pool(op: AveragePool2D, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "average_pool", "aannnnnnnn", dtype=node.outputs[0].type.dtype)

    def run(x: np.ndarray) -> tuple[np.ndarray]:
        op.check(x.shape)
        x = contiguous(x)
        (shape,) = op.array_shapes(x.shape)
        y = allocator.empty(shape, x.dtype)
        loop(x, y, *x.shape, *shape[1:3], op.size, op.stride)
        return (y,)

    return run


@cpu_kernel(AveragePoolGradient, float64=True)
def average_pool_gradient(op: AveragePoolGradient, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "average_pool_gradient", "aannnnnnnn", dtype=node.outputs[0].type.dtype)

    def run(g: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray]:
        op.check_gradient(g.shape, int(height), int(width))
        g = contiguous(g)
        dx = allocator.empty((g.shape[0], int(height), int(width), g.shape[3]), g.dtype)
        loop(g, dx, *dx.shape, *g.shape[1:3], op.size, op.stride)
        return (dx,)

    return run
