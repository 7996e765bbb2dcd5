"""Convolution and its two gradients on the CPU: Ops -> the direct convolution of convolution.py."""

import importlib.util

import numpy as np

from alexnet.dispatch.cpu import pool
from alexnet.dispatch.cpu.registry import kernel
from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient

if importlib.util.find_spec("alexnet.dispatch.cpu.convolution"):
    from alexnet.dispatch.cpu import convolution
else:
    from alexnet.ops import convolution


@kernel.register(Convolution)
def forward(op, node):
    def run(x, W):
        op.check(x.shape, W.shape)
        y = pool.empty(op.shapes(None, [x.shape, W.shape])[0], np.float32)
        convolution.forward(*_contiguous(x, W), *op.geometry, y)
        return (y,)

    return run


@kernel.register(ConvolutionInputGradient)
def input_gradient(op, node):
    def run(W, g, height, width):
        dx = pool.empty((W.shape[0] * op.groups, int(height), int(width), g.shape[3]), np.float32)
        op.check(dx.shape, W.shape, g.shape)
        convolution.input_gradient(*_contiguous(W, g), *op.geometry, dx)
        return (dx,)

    return run


@kernel.register(ConvolutionFilterGradient)
def filter_gradient(op, node):
    def run(x, g, size_r, size_c):
        dW = pool.empty((x.shape[0] // op.groups, int(size_r), int(size_c), g.shape[0]), np.float32)
        op.check(x.shape, dW.shape, g.shape)
        convolution.filter_gradient(*_contiguous(x, g), *op.geometry, dW)
        return (dW,)

    return run


def _contiguous(*arrays):
    return map(np.ascontiguousarray, arrays)
