"""Convolution and its two gradients on the CPU: direct, or with Winograd transforms where they are faster.

Shapes: x (channels, height, width, batch), W (channels / groups, filter_height, filter_width, outputs), y and its
gradient g (outputs, out_height, out_width, batch). All arrays are contiguous, and float32 or float64; the transforms
are for float32 only. A dense layer is a 1x1 image with a 1x1 filter: x (inputs, 1, 1, batch), W (inputs, 1, 1,
outputs). The padding consists of explicit zeros, so an infinite value multiplied by padding gives NaN.

The loops are in convolution.c and filter_gradient.c (direct), winograd.c and winograd_filter_gradient.c, and in dense.c
for dense layers of few images.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.native import allocator, compiler
from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient
from alexnet.ops.kernels.contiguous import contiguous
from alexnet.ops.registry import Run, cpu_kernel

TILE = 4                                         # outputs of a Winograd tile, in one dimension
TAPS = 3, 5                                      # supported filter sizes, after a stride is split into phases
# Rates of the transforms relative to the direct sum, and the time of transforming the filters, in blocks of images.
# These and TRANSFORMS fit the layers of AlexNet, VGG-16 and ResNet-50 for 1 to 32 images, measured by calling the
# functions below with winograd=True and winograd=False in turn.
RATES = {"forward": 1.0, "input_gradient": 1.0, "filter_gradient": 0.82}
FILTER_BLOCKS = {"forward": 2, "input_gradient": 2, "filter_gradient": 6}
TRANSFORMS = 38                                  # time of transforming a pixel of one channel, in multiplications
DENSE_IMAGES = 16                                # largest batch of dense.c
FOLDER = Path(__file__).parent
Pass = Literal["forward", "input_gradient", "filter_gradient"]
DENSE = FOLDER / "dense.c"
DIRECT: dict[Pass, Path] = {                     # the C files
    "forward": FOLDER / "convolution.c",
    "input_gradient": FOLDER / "convolution.c",
    "filter_gradient": FOLDER / "filter_gradient.c",
}
WINOGRAD: dict[Pass, Path] = {
    "forward": FOLDER / "winograd.c",
    "input_gradient": FOLDER / "winograd.c",
    "filter_gradient": FOLDER / "winograd_filter_gradient.c",
}


class Sizes(NamedTuple):
    """The sizes of a convolution, in the order of the C struct Layer."""

    channels: int
    height: int
    width: int
    batch: int
    outputs: int
    filter_height: int
    filter_width: int
    stride: int
    pad: int
    groups: int

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        return (
            (self.height + 2 * self.pad - self.filter_height) // self.stride + 1,
            (self.width + 2 * self.pad - self.filter_width) // self.stride + 1,
        )


def forward(
    x: np.ndarray, W: np.ndarray, stride: int, pad: int, groups: int, out: np.ndarray, winograd: bool | None = None
) -> None:
    """Write the convolution of x by W to out; winograd: use Winograd transforms, None: if they are faster."""
    _run("forward", (x, W, out), _sizes(x, W, out, stride, pad, groups), winograd)


def input_gradient(
    W: np.ndarray, g: np.ndarray, stride: int, pad: int, groups: int, out: np.ndarray, winograd: bool | None = None
) -> None:
    """Write the gradient with respect to x to out, given the gradient g of the output."""
    _run("input_gradient", (W, g, out), _sizes(out, W, g, stride, pad, groups), winograd)


def filter_gradient(
    x: np.ndarray, g: np.ndarray, stride: int, pad: int, groups: int, out: np.ndarray, winograd: bool | None = None
) -> None:
    """Write the gradient with respect to W to out, given the gradient g of the output."""
    _run("filter_gradient", (x, g, out), _sizes(x, out, g, stride, pad, groups), winograd)


def winograd_can(name: Pass, sizes: Sizes) -> bool:
    """Return True if Winograd transforms support this pass: square filters of 3x3 or 5x5 taps after a stride's split.

    The input gradient correlates with the rotated filters, which needs stride 1.
    """
    taps = -(-sizes.filter_height // sizes.stride)
    rotated = name != "input_gradient" or (sizes.stride == 1 and sizes.pad < sizes.filter_height)
    return sizes.filter_height == sizes.filter_width and taps in TAPS and rotated


def winograd_pays(name: Pass, sizes: Sizes) -> bool:
    """Return True if Winograd transforms are faster than the direct sum."""
    if not winograd_can(name, sizes):
        return False
    height, width = sizes.out if name != "input_gradient" else (sizes.height, sizes.width)
    channels, outputs = sizes.channels // sizes.groups * sizes.stride**2, sizes.outputs // sizes.groups
    gain = gain_of(
        height, width, channels, outputs, sizes.filter_height, sizes.stride, sizes.batch, block_size(),
        FILTER_BLOCKS[name],
    )
    return RATES[name] * gain > 1


def gain_of(
    height: int, width: int, channels: int, outputs: int, filter_size: int, stride: int, batch: int, block: int,
    filter_blocks: int,
) -> float:
    """Return the time of the direct sum divided by that of Winograd transforms at equal rates; Numba compiles it, too.

    Both are counted in multiplications per pair of channels. The transforms multiply whole blocks of tiles, transform
    each tile for every input and output channel, and transform the filters, which few images do not pay off.

    Args:
        height, width: of the results.
        channels, outputs: of one group, after a stride is split into phases.
        block: tiles or images in a vector of the kernels.
        filter_blocks: time of transforming the filters, in blocks.
    """
    tiles = -(-height // TILE) * -(-width // TILE)
    points = (TILE + -(-filter_size // stride) - 1) ** 2 * stride**2
    blocks = -(-tiles * batch // block) * (1 + TRANSFORMS * (1 / channels + 1 / outputs)) + filter_blocks
    return height * width * filter_size**2 * batch / (points * block * blocks)


def block_size() -> int:
    """Return the number of images or tiles in a block, which depends on the instruction set."""
    size = compiler.load(DIRECT["forward"]).block_size
    size.restype = ctypes.c_int64
    return int(size())


def _sizes(x: np.ndarray, W: np.ndarray, y: np.ndarray, stride: int, pad: int, groups: int) -> Sizes:
    """Return the sizes; raise ValueError if the shapes of images, filters and outputs do not match."""
    channels, height, width, batch = x.shape
    per_group, filter_height, filter_width, outputs = W.shape
    if stride < 1 or pad < 0 or groups < 1:
        raise ValueError(
            f"a convolution needs stride >= 1, pad >= 0 and groups >= 1, got {stride}, {pad} and {groups}"
        )
    if channels != per_group * groups or outputs % groups:
        raise ValueError(
            f"{groups} groups cannot share {channels} input and {outputs} output channels under filters of "
            f"{per_group} channels: input = groups * filter channels, and output a multiple of groups"
        )
    sizes = Sizes(
        channels, height, width, batch, outputs, filter_height, filter_width, int(stride), int(pad), int(groups)
    )
    if y.shape != (outputs, *sizes.out, batch) or min(W.shape[1:3] + y.shape[1:3]) < 1:
        raise ValueError(
            f"images {x.shape} under filters {W.shape} with stride {stride} and pad {pad} make outputs "
            f"{(outputs, *sizes.out, batch)}, got {y.shape}; rows and columns of filters and outputs must be at least 1"
        )
    if (filter_height, filter_width, stride, pad) == (1, 1, 1, 0):      # pixels are independent: treat each as an image
        return sizes._replace(height=1, width=1, batch=height * width * batch)
    return sizes


def _run(name: Pass, arrays: Sequence[np.ndarray], sizes: Sizes, winograd: bool | None) -> None:
    """Call the C function of a pass on (input, input, output), with a workspace of the size it requires."""
    dtype = arrays[0].dtype
    for array in arrays:
        if array.dtype != dtype or dtype not in (np.float32, np.float64) or not array.flags.c_contiguous:
            raise ValueError(
                "convolution kernels take contiguous arrays of one dtype, float32 or float64, got "
                f"{', '.join(str(each.dtype) for each in arrays)} with strides {array.strides}"
            )
    if min(array.size for array in arrays) == 0:         # a sum without terms; the C functions divide by the lengths
        arrays[-1][...] = 0
        return
    if name != "filter_gradient" and is_small_dense(sizes):
        dense = compiler.function(DENSE, f"dense_{name}", "aaannn", can_fail=True, dtype=dtype.name)
        dense(*arrays, sizes.channels, sizes.outputs, sizes.batch)
        return
    if winograd is None:
        winograd = dtype == np.float32 and winograd_pays(name, sizes)
    library = compiler.load((WINOGRAD if winograd else DIRECT)[name], dtype=dtype.name)
    c_sizes = (ctypes.c_int64 * len(sizes))(*sizes)
    workspace_bytes = getattr(library, f"{name}_workspace")
    workspace_bytes.restype = ctypes.c_int64
    workspace = allocator.empty((workspace_bytes(c_sizes),), np.uint8)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, workspace)]
    getattr(library, name)(c_sizes, *pointers)


def is_small_dense(sizes: Sizes) -> bool:
    """Return True for a dense layer of at most DENSE_IMAGES images, which dense.c computes at the speed of memory."""
    pixels = sizes.height, sizes.width, sizes.filter_height, sizes.filter_width
    return pixels == (1, 1, 1, 1) and sizes.groups == 1 and sizes.pad == 0 and sizes.batch <= DENSE_IMAGES


def request(name: Pass, dtype: str) -> None:
    """Request compilation of the kernels of a pass, direct and for float32 Winograd; the call chooses by the sizes."""
    compiler.request(DIRECT[name], dtype=dtype)
    if name != "filter_gradient":
        compiler.request(DENSE, dtype=dtype)
    if dtype == "float32":
        compiler.request(WINOGRAD[name])


@cpu_kernel(Convolution, float64=True)
def convolution(op: Convolution, node: Apply) -> Run:
    request("forward", node.outputs[0].type.dtype)

    def run(x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray]:
        x = contiguous(x)
        W = contiguous(W)
        y = allocator.empty(op.array_shapes(x.shape, W.shape)[0], x.dtype)
        forward(x, W, *op.geometry, y)
        return (y,)

    return run


@cpu_kernel(ConvolutionInputGradient, float64=True)
def convolution_input_gradient(op: ConvolutionInputGradient, node: Apply) -> Run:
    request("input_gradient", node.outputs[0].type.dtype)

    def run(W: np.ndarray, g: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray]:
        W = contiguous(W)
        g = contiguous(g)
        dx = allocator.empty((W.shape[0] * op.groups, int(height), int(width), g.shape[3]), g.dtype)
        input_gradient(W, g, *op.geometry, dx)
        return (dx,)

    return run


@cpu_kernel(ConvolutionFilterGradient, float64=True)
def convolution_filter_gradient(op: ConvolutionFilterGradient, node: Apply) -> Run:
    request("filter_gradient", node.outputs[0].type.dtype)

    def run(x: np.ndarray, g: np.ndarray, filter_height: np.ndarray, filter_width: np.ndarray) -> tuple[np.ndarray]:
        x = contiguous(x)
        g = contiguous(g)
        shape = x.shape[0] // op.groups, int(filter_height), int(filter_width), g.shape[0]
        dW = allocator.empty(shape, g.dtype)
        filter_gradient(x, g, *op.geometry, dW)
        return (dW,)

    return run
