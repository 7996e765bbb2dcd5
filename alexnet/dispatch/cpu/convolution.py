"""Convolution and its two gradients on the CPU: the loops are in convolution.c and filter_gradient.c.

Shapes: x (c, height, width, b), w (c / groups, rows, columns, o), out and its gradient g (o, rows, columns, b).
All are float32 and contiguous.  A dense layer is a 1x1 image under a 1x1 filter: x (in, 1, 1, b), w (in, 1, 1, out).
The padding is explicit zeros, so an infinite number multiplied with them makes NaN.
"""

import ctypes

import numpy as np

from alexnet.dispatch.cpu import build, pool
from alexnet.dispatch.cpu.registry import kernel
from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient


def forward(x, w, stride, pad, groups, out):
    """Fill out with the convolution of x by w."""
    _run("convolution", "forward", (x, w, out), _layer(x, w, out, stride, pad, groups))


def input_gradient(w, g, stride, pad, groups, out):
    """Fill out, shaped like x, with the gradient g of the output led back to x."""
    _run("convolution", "input_gradient", (w, g, out), _layer(out, w, g, stride, pad, groups))


def filter_gradient(x, g, stride, pad, groups, out):
    """Fill out, shaped like w, with the gradient g of the output led back to w."""
    _run("filter_gradient", "filter_gradient", (x, g, out), _layer(x, out, g, stride, pad, groups))


def _layer(x, w, y, stride, pad, groups):
    """Return the sizes as C takes them; raises ValueError where images, filters and outputs do not fit."""
    channels, height, width, batch = x.shape
    per_group, rows, columns, outputs = w.shape
    if stride < 1 or pad < 0 or groups < 1:
        raise ValueError(
            f"a convolution needs stride >= 1, pad >= 0 and groups >= 1, got {stride}, {pad} and {groups}"
        )
    if channels != per_group * groups or outputs % groups:
        raise ValueError(
            f"{groups} groups cannot share {channels} input and {outputs} output channels under filters of "
            f"{per_group} channels: input = groups * filter channels, and output a multiple of groups"
        )
    expected = (outputs, _windows(height, rows, stride, pad), _windows(width, columns, stride, pad), batch)
    if y.shape != expected or min(x.shape + w.shape + y.shape) < 1:
        raise ValueError(
            f"images {x.shape} under filters {w.shape} with stride {stride} and pad {pad} make outputs "
            f"{expected}, got {y.shape}; every length must be at least 1"
        )
    sizes = (channels, height, width, batch, outputs, rows, columns, stride, pad, groups)
    return (ctypes.c_int64 * len(sizes))(*map(int, sizes))


def _windows(n, size, stride, pad):
    return (n + 2 * pad - size) // stride + 1


def _run(library, name, arrays, layer):
    """Call a function of a C library on (input, input, output), with the workspace it asks for."""
    for array in arrays:
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(
                f"convolution kernels take contiguous float32 arrays, got {array.dtype} with strides {array.strides}"
            )
    functions = build.library(library)
    workspace_bytes = getattr(functions, f"{name}_workspace")
    workspace_bytes.restype = ctypes.c_int64
    workspace = pool.empty((workspace_bytes(layer),), np.uint8)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, workspace)]
    getattr(functions, name)(layer, *pointers)


def want(library):
    build.want(build.source_of(library), library)


@kernel.register(Convolution)
def convolution(op, node):
    want("convolution")

    def run(x, w):
        x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
        out = pool.empty(op.shapes(None, [x.shape, w.shape])[0], np.float32)
        forward(x, w, *op.geometry, out)
        return (out,)

    return run


@kernel.register(ConvolutionInputGradient)
def convolution_input_gradient(op, node):
    want("convolution")

    def run(w, g, height, width):
        w, g = np.ascontiguousarray(w), np.ascontiguousarray(g)
        dx = pool.empty((w.shape[0] * op.groups, int(height), int(width), g.shape[3]), np.float32)
        input_gradient(w, g, *op.geometry, dx)
        return (dx,)

    return run


@kernel.register(ConvolutionFilterGradient)
def convolution_filter_gradient(op, node):
    want("filter_gradient")

    def run(x, g, rows, columns):
        x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
        dw = pool.empty((x.shape[0] // op.groups, int(rows), int(columns), g.shape[0]), np.float32)
        filter_gradient(x, g, *op.geometry, dw)
        return (dw,)

    return run
