"""Convolution and its two gradients on the CPU: direct, or with Winograd transforms where they are faster.

Shapes: x (c, height, width, b), w (c / groups, rows, columns, o), out and its gradient g (o, rows, columns, b).
All arrays are float32 and contiguous. A dense layer is a 1x1 image with a 1x1 filter: x (in, 1, 1, b),
w (in, 1, 1, out). The padding consists of explicit zeros, so an infinite value multiplied by padding gives NaN.

The loops are in convolution.c and filter_gradient.c (direct), winograd.c and winograd_filter_gradient.c.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler
from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient
from alexnet.ops.base import windows_along

TILE = 4                                         # outputs of a Winograd tile, in one dimension
TAPS = 3, 5                                      # supported filter sizes, after a stride is split into phases
FEWEST_CHANNELS = 16                             # of input and output; with fewer the transforms do not pay off
FOLDER = Path(__file__).parent
DIRECT = {                                       # pass: C file
    "forward": FOLDER / "convolution.c",
    "input_gradient": FOLDER / "convolution.c",
    "filter_gradient": FOLDER / "filter_gradient.c",
}
WINOGRAD = {
    "forward": FOLDER / "winograd.c",
    "input_gradient": FOLDER / "winograd.c",
    "filter_gradient": FOLDER / "winograd_filter_gradient.c",
}


class Layer(NamedTuple):
    """The sizes of a convolution, in the order of the C struct; w has channels / groups input channels."""

    channels: int
    height: int
    width: int
    batch: int
    outputs: int
    rows: int
    columns: int
    stride: int
    pad: int
    groups: int

    @property
    def out(self):
        """Rows and columns of the output."""
        return tuple(
            windows_along(n, size, self.stride, self.pad)
            for n, size in ((self.height, self.rows), (self.width, self.columns))
        )


def forward(x, w, stride, pad, groups, out, winograd=None):
    """Write the convolution of x by w to out; winograd: use Winograd transforms, None: if they are faster."""
    _run("forward", (x, w, out), _layer(x, w, out, stride, pad, groups), winograd)


def input_gradient(w, g, stride, pad, groups, out, winograd=None):
    """Write the gradient with respect to x to out, given the gradient g of the output."""
    _run("input_gradient", (w, g, out), _layer(out, w, g, stride, pad, groups), winograd)


def filter_gradient(x, g, stride, pad, groups, out, winograd=None):
    """Write the gradient with respect to w to out, given the gradient g of the output."""
    _run("filter_gradient", (x, g, out), _layer(x, out, g, stride, pad, groups), winograd)


def winograd_can(name, layer):
    """Whether Winograd transforms support this pass: square filters of 3x3 or 5x5 taps after the stride is split."""
    taps = -(-layer.rows // layer.stride)
    turned = name != "input_gradient" or (layer.stride == 1 and layer.pad < layer.rows)
    return layer.rows == layer.columns and taps in TAPS and turned


def winograd_pays(name, layer):
    """Whether Winograd transforms are faster: at most half the multiplications, and enough channels."""
    if not winograd_can(name, layer):
        return False
    inputs, outputs = layer.channels // layer.groups * layer.stride**2, layer.outputs // layer.groups
    rows, columns = layer.out if name != "input_gradient" else (layer.height, layer.width)
    taps = -(-layer.rows // layer.stride)
    points = (TILE + taps - 1) ** 2 * layer.stride**2
    multiplications = -(-rows // TILE) * -(-columns // TILE) * points
    return min(inputs, outputs) >= FEWEST_CHANNELS and 2 * multiplications <= rows * columns * layer.rows**2


def _layer(x, w, y, stride, pad, groups):
    """Return the Layer; raise ValueError if the shapes of images, filters and outputs do not match."""
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
    layer = Layer(*map(int, (channels, height, width, batch, outputs, rows, columns, stride, pad, groups)))
    if y.shape != (outputs, *layer.out, batch) or min(x.shape + w.shape + y.shape) < 1:
        raise ValueError(
            f"images {x.shape} under filters {w.shape} with stride {stride} and pad {pad} make outputs "
            f"{(outputs, *layer.out, batch)}, got {y.shape}; every length must be at least 1"
        )
    if (rows, columns, stride, pad) == (1, 1, 1, 0):                    # pixels are independent: treat each as an image
        return layer._replace(height=1, width=1, batch=layer.height * layer.width * layer.batch)
    return layer


def _run(name, arrays, layer, winograd):
    """Call the C function of a pass on (input, input, output), with a workspace of the size it requires."""
    for array in arrays:
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(
                f"convolution kernels take contiguous float32 arrays, got {array.dtype} with strides {array.strides}"
            )
    winograd = winograd_pays(name, layer) if winograd is None else winograd
    functions = compiler.library((WINOGRAD if winograd else DIRECT)[name])
    sizes = (ctypes.c_int64 * len(layer))(*layer)
    workspace_bytes = getattr(functions, f"{name}_workspace")
    workspace_bytes.restype = ctypes.c_int64
    workspace = allocator.empty((workspace_bytes(sizes),), np.uint8)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, workspace)]
    getattr(functions, name)(sizes, *pointers)


def want(name):
    """Request compilation of the direct and the Winograd kernel of a pass; the sizes are known only at the call."""
    for path in (DIRECT[name], WINOGRAD[name]):
        compiler.request(compiler.source_of(path), path.stem)


@kernel.register(Convolution)
def convolution(op, node):
    want("forward")

    def run(x, w):
        x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
        out = allocator.empty(op.shapes(None, [x.shape, w.shape])[0], np.float32)
        forward(x, w, *op.geometry, out)
        return (out,)

    return run


@kernel.register(ConvolutionInputGradient)
def convolution_input_gradient(op, node):
    want("input_gradient")

    def run(w, g, height, width):
        w, g = np.ascontiguousarray(w), np.ascontiguousarray(g)
        dx = allocator.empty((w.shape[0] * op.groups, int(height), int(width), g.shape[3]), np.float32)
        input_gradient(w, g, *op.geometry, dx)
        return (dx,)

    return run


@kernel.register(ConvolutionFilterGradient)
def convolution_filter_gradient(op, node):
    want("filter_gradient")

    def run(x, g, rows, columns):
        x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
        dw = allocator.empty((x.shape[0] // op.groups, int(rows), int(columns), g.shape[0]), np.float32)
        filter_gradient(x, g, *op.geometry, dw)
        return (dw,)

    return run
