"""Batch normalisation and its gradient on the CPU; the loops are in batch_norm.c."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.native import allocator, compiler
from alexnet.ops import BatchNorm2D, BatchNormGradient
from alexnet.ops.kernels.contiguous import contiguous
from alexnet.ops.registry import Run, cpu_kernel

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(BatchNorm2D, float64=True)
def batch_norm(op: BatchNorm2D, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "batch_norm", "aaaaaannnr", dtype=node.outputs[0].type.dtype)

    def run(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, ...]:
        op.check(x.shape, gamma.shape, beta.shape)
        x = contiguous(x)
        y = allocator.empty(x.shape, x.dtype)
        mean, variance = np.empty((2, len(x)), x.dtype)
        vectors = map(np.ascontiguousarray, (gamma, beta))
        loop(x, *vectors, y, mean, variance, len(x), x.size // len(x), op.relu, op.epsilon)
        return y, mean, variance

    return run


@cpu_kernel(BatchNormGradient, float64=True)
def batch_norm_gradient(op: BatchNormGradient, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "batch_norm_gradient", "aaaaaaaaannnr", dtype=node.outputs[0].type.dtype)

    def run(
        x: np.ndarray, gamma: np.ndarray, mean: np.ndarray, variance: np.ndarray, g: np.ndarray, *y: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        op.check_gradient(x, (gamma, mean, variance), (g, *y))
        x = contiguous(x)
        after_relu = contiguous(y[0]) if op.relu else x
        dx = allocator.empty(x.shape, x.dtype)
        dgamma, dbeta = np.empty((2, len(x)), x.dtype)
        vectors = map(np.ascontiguousarray, (gamma, mean, variance))
        loop(
            x, *vectors, contiguous(g), after_relu, dx, dgamma, dbeta, len(x), x.size // max(len(x), 1), op.relu,
            op.epsilon,
        )
        return dx, dgamma, dbeta

    return run
