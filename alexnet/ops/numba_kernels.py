"""The C kernels as functions for PyTensor's Numba mode, which is its default.

A compiled graph calls a kernel like any C function, without Python. The function is found by a symbol that contains the
hash of its library, so PyTensor can store the compiled graph in its cache. Arrays are allocated from a pool (pool.c).
Without a C compiler, these Ops run their NumPy references in Numba's object mode.
"""

import ctypes
import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_new_ref
from numba.extending import intrinsic, overload, register_jitable
from numba.np.arrayobj import make_array, populate_array
from pytensor.graph.basic import Apply
from pytensor.link.numba.dispatch.basic import generate_fallback_impl, numba_njit, register_funcify_default_op_cache_key

from alexnet.native import compiler
from alexnet.ops import (
    AveragePool2D,
    AveragePoolGradient,
    BatchNorm2D,
    BatchNormGradient,
    Convolution,
    ConvolutionFilterGradient,
    ConvolutionInputGradient,
    CropMirror,
    InvertedDropout,
    LocalResponseNorm,
    LRNGradient,
    MaxPool2D,
    MaxPoolGradient,
    kernels,
)
from alexnet.ops.base import ShapedOp, window_count
from alexnet.ops.kernels.contiguous import ITEMSIZES
from alexnet.ops.kernels.convolution import FILTER_BLOCKS, RATES, TAPS, block_size, gain_of

FOLDER = Path(kernels.__file__).parent
LETTERS = {"a": types.uintp, "n": types.int64, "u": types.uint32}
REALS = {"float32": types.float32, "float64": types.float64}
Array: TypeAlias = np.ndarray
Function = Callable[..., Any]                    # for Numba to compile

windows = register_jitable(window_count)
winograd_gain = register_jitable(gain_of)


class Library:
    """The C functions that the implementation of one node calls, for elements of one dtype."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.symbols = {*_symbols_of_arrays()}
        self.empty = _empty()
        self.contiguous = _contiguous()

    def function(self, file: str, symbol: str, signature: str, returns: Any = types.void) -> types.ExternalFunction:
        """Compile a file of the folder kernels, and return one of its functions for use in compiled functions.

        Args:
            signature: one letter per argument: a = address, n = long, u = uint32_t, r = REAL.
        """
        name = _symbol(file, symbol, self.dtype)
        self.symbols.add(name)
        arguments = [REALS[self.dtype] if letter == "r" else LETTERS[letter] for letter in signature]
        return types.ExternalFunction(name, returns(*arguments))

    def version(self) -> int:
        """Return a number that differs if the kernels or this file differ, for the key in the cache of PyTensor."""
        text = ",".join(sorted(self.symbols)).encode() + Path(__file__).read_bytes()
        return int.from_bytes(hashlib.sha256(text).digest()[:7])


@cache
def _symbol(file: str, symbol: str, dtype: str) -> str:
    """Compile and load a C file, and return the name by which compiled code finds one of its functions."""
    library = compiler.load(FOLDER / file, dtype=dtype)
    name = f"alexnet_{symbol}_{Path(library._name).stem}"
    binding.add_symbol(name, ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value)
    return name


def _symbols_of_arrays() -> list[str]:
    """Return the names of the functions that allocate arrays, and transpose those of each of ITEMSIZES bytes."""
    take = _symbol("pool.c", "take_counted", "float32")
    return [take, *(_symbol("transpose.c", f"transpose{n}", "float32") for n in ITEMSIZES)]


@cache
def _empty() -> Function:
    """Return a function (shape, dtype) -> uninitialised array in C order, from the pool."""
    take_counted = _symbols_of_arrays()[0]

    @intrinsic
    def empty(typing: Any, shape: types.UniTuple, dtype: Any) -> tuple[Any, Function]:
        array_type = types.Array(dtype.dtype, shape.count, "C")

        def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
            itemsize = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
            nbytes = ir.Constant(context.get_value_type(types.intp), itemsize)
            lengths = cgutils.unpack_tuple(builder, arguments[0], shape.count)
            strides: list[Any] = []
            for length in reversed(lengths):
                strides.insert(0, nbytes)
                nbytes = builder.mul(nbytes, length)
            function_type = ir.FunctionType(cgutils.voidptr_t, [cgutils.voidptr_t, nbytes.type])
            take = cgutils.get_or_insert_function(builder.module, function_type, take_counted)
            meminfo = builder.call(take, [context.nrt.get_nrt_api(builder), nbytes])
            with builder.if_then(cgutils.is_null(builder, meminfo), likely=False):
                context.call_conv.return_user_exc(builder, MemoryError, ("a kernel could not allocate its output",))
            array = make_array(array_type)(context, builder)
            data = builder.bitcast(context.nrt.meminfo_data(builder, meminfo), array.data.type)
            populate_array(array, data, lengths, strides, itemsize, meminfo)
            return impl_ret_new_ref(context, builder, array_type, array._getvalue())

        return array_type(shape, dtype), code

    return empty


@intrinsic
def keep(typing: Any, array: types.Array) -> tuple[Any, Function]:
    """Do nothing. This use of an array after a C call keeps Numba, which saw its address only, from freeing it."""
    return types.void(array), lambda context, builder, signature, arguments: context.get_dummy_value()


@cache
def _contiguous() -> Function:
    """Return a function of an array: the array if it is in C order, else a copy in C order."""
    empty = _empty()
    transposes = {
        n: types.ExternalFunction(name, types.void(types.uintp, types.uintp, types.int64, types.int64))
        for n, name in zip(ITEMSIZES, _symbols_of_arrays()[1:], strict=True)
    }

    def contiguous(x: Any) -> Any:
        raise NotImplementedError("only Numba calls it")

    @overload(contiguous)
    def implementation(x: Any) -> Function:
        transpose = transposes[x.dtype.bitwidth // 8]

        def same(x: Any) -> Any:
            return x

        def copied(x: Any) -> Any:
            return np.ascontiguousarray(x)

        def converted(x: Any) -> Any:
            channels, height, width, batch = x.shape
            step = x.itemsize
            if x.strides == (height * width * batch * step, width * batch * step, batch * step, step):
                return x
            if x.strides != (height * width * step, width * step, step, channels * height * width * step):
                return np.ascontiguousarray(x)
            y = empty(x.shape, x.dtype)
            transpose(x.ctypes.data, y.ctypes.data, batch, channels * height * width)
            keep(x)
            return y

        return same if x.layout == "C" else converted if x.ndim == 4 else copied

    return contiguous


Build = Callable[[Any, Library], Function]
_implementations: dict[type[ShapedOp], Callable[..., tuple[Function, int]]] = {}


def numba_kernel(op_type: type[ShapedOp], dtypes: tuple[str, ...] = ("float32", "float64")) -> Callable[[Build], Build]:
    """Add a function (op, library) -> function of arrays as the Numba implementation of an Op.

    Nodes of other dtypes, and all nodes if there is no C compiler, run in object mode.
    """

    def add(build: Build) -> Build:
        def funcify(op: ShapedOp, node: Apply, **others: Any) -> tuple[Function, int]:
            dtype = node.outputs[0].type.dtype
            if compiler.compiler_available() and dtype in dtypes:
                library = Library(dtype)
                return numba_njit(build(op, library)), library.version()
            with warnings.catch_warnings():      # of each Op; one about the compiler follows when the graph runs
                warnings.simplefilter("ignore", UserWarning)
                return generate_fallback_impl(op, node, **others), 0

        _implementations[op_type] = funcify
        return build

    return add


@cache
def register() -> None:
    """Register the kernels with PyTensor's Numba mode."""
    for op_type, funcify in _implementations.items():
        register_funcify_default_op_cache_key(op_type)(funcify)


def _convolution(library: Library, op: Any, name: str) -> Function:
    """Return a function (a, b, out, channels, height, width, batch, outputs, filter_height, filter_width) of one pass.

    a and b are the inputs of the pass, in the order of its C function, in C order.
    """
    stride, pad, groups = op.geometry
    empty = library.empty
    file = "filter_gradient" if name == "filter_gradient" else "convolution"
    direct = library.function(f"{file}.c", name, "aaaaa")
    direct_bytes = library.function(f"{file}.c", f"{name}_workspace", "a", types.int64)
    has_transforms = library.dtype == "float32" and (name != "input_gradient" or stride == 1)
    file = "winograd_filter_gradient" if name == "filter_gradient" else "winograd"
    transformed = library.function(f"{file}.c", name, "aaaaa") if has_transforms else direct
    transformed_bytes = (
        library.function(f"{file}.c", f"{name}_workspace", "a", types.int64) if has_transforms else direct_bytes
    )
    of_images = name == "input_gradient"
    block = block_size()
    rate, filter_blocks = RATES[name], FILTER_BLOCKS[name]

    @register_jitable
    def run(
        a: Array, b: Array, out: Array, channels: int, height: int, width: int, batch: int, outputs: int,
        filter_height: int, filter_width: int
    ) -> Array:
        if a.size == 0 or b.size == 0 or out.size == 0:   # a sum without terms; the C functions divide by the lengths
            out[:] = 0
            return out
        out_height = windows(height, filter_height, stride, pad, False)
        out_width = windows(width, filter_width, stride, pad, False)
        pays = has_transforms and filter_height == filter_width and -(-filter_height // stride) in TAPS
        if pays and not (of_images and pad >= filter_height):
            rows, columns = (height, width) if of_images else (out_height, out_width)
            pays = rate * winograd_gain(
                rows, columns, channels // groups * stride**2, outputs // groups, filter_height, stride, batch, block,
                filter_blocks
            ) > 1
        if filter_height == 1 and filter_width == 1 and stride == 1 and pad == 0:
            batch = height * width * batch                # pixels are independent: each is an image
            height = width = 1
        numbers = (channels, height, width, batch, outputs, filter_height, filter_width, stride, pad, groups)
        sizes = np.array(numbers, np.int64)
        address = sizes.ctypes.data
        workspace = empty((transformed_bytes(address) if pays else direct_bytes(address),), np.uint8)
        if pays:
            transformed(address, a.ctypes.data, b.ctypes.data, out.ctypes.data, workspace.ctypes.data)
        else:
            direct(address, a.ctypes.data, b.ctypes.data, out.ctypes.data, workspace.ctypes.data)
        keep(a)
        keep(b)
        keep(workspace)
        keep(sizes)
        return out

    return run


@numba_kernel(Convolution)
def convolution(op: Convolution, library: Library) -> Function:
    stride, pad, groups = op.geometry
    empty, contiguous = library.empty, library.contiguous
    compute = _convolution(library, op, "forward")
    mismatch = f"{op}: images and filters do not match: channels, groups, or filters larger than the images"

    def run(x: Array, W: Array) -> Array:
        channels, height, width, batch = x.shape
        per_group, filter_height, filter_width, outputs = W.shape
        out_height = windows(height, filter_height, stride, pad, False)
        out_width = windows(width, filter_width, stride, pad, False)
        if channels != per_group * groups or outputs % groups or out_height < 1 or out_width < 1:
            raise ValueError(mismatch)
        y = empty((outputs, out_height, out_width, batch), x.dtype)
        return compute(
            contiguous(x), contiguous(W), y, channels, height, width, batch, outputs, filter_height, filter_width
        )

    return run


@numba_kernel(ConvolutionInputGradient)
def convolution_input_gradient(op: ConvolutionInputGradient, library: Library) -> Function:
    stride, pad, groups = op.geometry
    empty, contiguous = library.empty, library.contiguous
    compute = _convolution(library, op, "input_gradient")
    mismatch = f"{op}: the gradient does not have the shape of the output, or the filters do not match the groups"

    def run(W: Array, g: Array, height: Array, width: Array) -> Array:
        per_group, filter_height, filter_width, outputs = W.shape
        rows, columns = height.item(), width.item()
        shape = windows(rows, filter_height, stride, pad, False), windows(columns, filter_width, stride, pad, False)
        if (outputs, shape[0], shape[1]) != g.shape[:3] or outputs % groups or shape[0] < 1 or shape[1] < 1:
            raise ValueError(mismatch)
        dx = empty((per_group * groups, rows, columns, g.shape[3]), g.dtype)
        return compute(
            contiguous(W), contiguous(g), dx, per_group * groups, rows, columns, g.shape[3], outputs,
            filter_height, filter_width
        )

    return run


@numba_kernel(ConvolutionFilterGradient)
def convolution_filter_gradient(op: ConvolutionFilterGradient, library: Library) -> Function:
    stride, pad, groups = op.geometry
    empty, contiguous = library.empty, library.contiguous
    compute = _convolution(library, op, "filter_gradient")
    mismatch = f"{op}: the gradient does not have the shape of the output, or the groups do not match"

    def run(x: Array, g: Array, filter_height: Array, filter_width: Array) -> Array:
        channels, height, width, batch = x.shape
        outputs = g.shape[0]
        rows, columns = filter_height.item(), filter_width.item()
        shape = windows(height, rows, stride, pad, False), windows(width, columns, stride, pad, False)
        if (shape[0], shape[1], batch) != g.shape[1:] or channels % groups or outputs % groups or min(shape) < 1:
            raise ValueError(mismatch)
        dW = empty((channels // groups, rows, columns, outputs), g.dtype)
        return compute(
            contiguous(x), contiguous(g), dW, channels, height, width, batch, outputs, rows, columns
        )

    return run


@numba_kernel(MaxPool2D)
def max_pool(op: MaxPool2D, library: Library) -> Function:
    size, stride, pad, ceil = op.size, op.stride, op.pad, op.ceil
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("max_pool.c", "max_pool", "aaannnnnnnnn")
    small = f"{op}: the windows are larger than the images"

    def run(x: Array) -> tuple[Array, Array]:
        x = contiguous(x)
        channels, height, width, batch = x.shape
        if min(height, width) + 2 * pad < size:
            raise ValueError(small)
        rows, columns = windows(height, size, stride, pad, ceil), windows(width, size, stride, pad, ceil)
        y = empty((channels, rows, columns, batch), x.dtype)
        index = empty((channels, rows, columns, batch), np.uint8)
        loop(
            x.ctypes.data, y.ctypes.data, index.ctypes.data, channels, height, width, batch, rows, columns,
            size, stride, pad
        )
        keep(x)
        return y, index

    return run


@numba_kernel(MaxPoolGradient)
def max_pool_gradient(op: MaxPoolGradient, library: Library) -> Function:
    size, stride, pad, ceil = op.size, op.stride, op.pad, op.ceil
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("max_pool.c", "max_pool_gradient", "aaannnnnnnnn")
    mismatch = f"{op}: g and index do not have the shape that pooling of the image produces"

    def run(g: Array, index: Array, height: Array, width: Array) -> Array:
        g = contiguous(g)
        index = contiguous(index)
        rows, columns = height.item(), width.item()
        shape = windows(rows, size, stride, pad, ceil), windows(columns, size, stride, pad, ceil)
        if g.shape != index.shape or g.shape[1:3] != shape:
            raise ValueError(mismatch)
        dx = empty((g.shape[0], rows, columns, g.shape[3]), g.dtype)
        loop(
            g.ctypes.data, index.ctypes.data, dx.ctypes.data, g.shape[0], rows, columns, g.shape[3], shape[0],
            shape[1], size, stride, pad
        )
        keep(g)
        keep(index)
        return dx

    return run


@numba_kernel(AveragePool2D)
def average_pool(op: AveragePool2D, library: Library) -> Function:
    size, stride = op.size, op.stride
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("average_pool.c", "average_pool", "aannnnnnnn")
    small = f"{op}: the windows are larger than the images"

    def run(x: Array) -> Array:
        x = contiguous(x)
        channels, height, width, batch = x.shape
        if min(height, width) < size:
            raise ValueError(small)
        rows, columns = windows(height, size, stride, 0, False), windows(width, size, stride, 0, False)
        y = empty((channels, rows, columns, batch), x.dtype)
        loop(x.ctypes.data, y.ctypes.data, channels, height, width, batch, rows, columns, size, stride)
        keep(x)
        return y

    return run


@numba_kernel(AveragePoolGradient)
def average_pool_gradient(op: AveragePoolGradient, library: Library) -> Function:
    size, stride = op.size, op.stride
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("average_pool.c", "average_pool_gradient", "aannnnnnnn")
    mismatch = f"{op}: g does not have the shape that pooling of the image produces"

    def run(g: Array, height: Array, width: Array) -> Array:
        g = contiguous(g)
        rows, columns = height.item(), width.item()
        if g.shape[1:3] != (windows(rows, size, stride, 0, False), windows(columns, size, stride, 0, False)):
            raise ValueError(mismatch)
        dx = empty((g.shape[0], rows, columns, g.shape[3]), g.dtype)
        loop(
            g.ctypes.data, dx.ctypes.data, g.shape[0], rows, columns, g.shape[3], g.shape[1], g.shape[2], size, stride
        )
        keep(g)
        return dx

    return run


@numba_kernel(LocalResponseNorm)
def lrn(op: LocalResponseNorm, library: Library) -> Function:
    n, k, alpha, beta = op.n, op.k, op.alpha, op.beta
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("lrn.c", "lrn", "aannnrrr")

    def run(x: Array) -> Array:
        x = contiguous(x)
        channels = x.shape[0]
        y = empty(x.shape, x.dtype)
        loop(
            x.ctypes.data, y.ctypes.data, channels, x.size // max(channels, 1), min(n, 2 * channels + 1), k, alpha, beta
        )
        keep(x)
        return y

    return run


@numba_kernel(LRNGradient)
def lrn_gradient(op: LRNGradient, library: Library) -> Function:
    n, k, alpha, beta = op.n, op.k, op.alpha, op.beta
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("lrn.c", "lrn_gradient", "aaannnrrr", types.int32)

    def run(x: Array, g: Array) -> Array:
        x = contiguous(x)
        g = contiguous(g)
        if x.shape != g.shape:
            raise ValueError("the gradient of LRN must have the shape of its images")
        channels = x.shape[0]
        dx = empty(x.shape, x.dtype)
        failed = loop(
            x.ctypes.data, g.ctypes.data, dx.ctypes.data, channels, x.size // max(channels, 1),
            min(n, 2 * channels + 1), k, alpha, beta
        )
        keep(x)
        keep(g)
        if failed:
            raise MemoryError("a kernel could not allocate its working memory: use a smaller batch or fewer threads")
        return dx

    return run


@numba_kernel(BatchNorm2D)
def batch_norm(op: BatchNorm2D, library: Library) -> Function:
    relu, epsilon = int(op.relu), op.epsilon
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("batch_norm.c", "batch_norm", "aaaaaannnr")
    mismatch = f"{op}: there must be one value for each channel, and a channel must have values"

    def run(x: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array]:
        x = contiguous(x)
        gamma = np.ascontiguousarray(gamma)
        beta = np.ascontiguousarray(beta)
        channels = x.shape[0]
        if len(gamma) != channels or len(beta) != channels or 0 in x.shape[1:]:
            raise ValueError(mismatch)
        y = empty(x.shape, x.dtype)
        mean = np.empty(channels, x.dtype)
        variance = np.empty(channels, x.dtype)
        loop(
            x.ctypes.data, gamma.ctypes.data, beta.ctypes.data, y.ctypes.data, mean.ctypes.data, variance.ctypes.data,
            channels, x.size // max(channels, 1), relu, epsilon
        )
        keep(x)
        keep(gamma)
        keep(beta)
        return y, mean, variance

    return run


@numba_kernel(BatchNormGradient)
def batch_norm_gradient(op: BatchNormGradient, library: Library) -> Function:
    relu, epsilon = int(op.relu), op.epsilon
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("batch_norm.c", "batch_norm_gradient", "aaaaaaaaannnr")
    mismatch = f"{op}: g and y must have the shape of x, and there must be one value for each channel"

    def compute(x: Array, gamma: Array, mean: Array, variance: Array, g: Array, y: Array) -> tuple[Array, Array, Array]:
        gamma = np.ascontiguousarray(gamma)
        mean = np.ascontiguousarray(mean)
        variance = np.ascontiguousarray(variance)
        channels = x.shape[0]
        if not (x.shape == g.shape == y.shape and len(gamma) == len(mean) == len(variance) == channels):
            raise ValueError(mismatch)
        dx = empty(x.shape, x.dtype)
        dgamma = np.empty(channels, x.dtype)
        dbeta = np.empty(channels, x.dtype)
        loop(
            x.ctypes.data, gamma.ctypes.data, mean.ctypes.data, variance.ctypes.data, g.ctypes.data, y.ctypes.data,
            dx.ctypes.data, dgamma.ctypes.data, dbeta.ctypes.data, channels, x.size // max(channels, 1), relu, epsilon
        )
        keep(x)
        keep(gamma)
        keep(mean)
        keep(variance)
        keep(g)
        keep(y)
        return dx, dgamma, dbeta

    compute = register_jitable(compute)

    def run(x: Array, gamma: Array, mean: Array, variance: Array, g: Array) -> tuple[Array, Array, Array]:
        x = contiguous(x)
        return compute(x, gamma, mean, variance, contiguous(g), x)

    def run_after_relu(
        x: Array, gamma: Array, mean: Array, variance: Array, g: Array, y: Array
    ) -> tuple[Array, Array, Array]:
        return compute(contiguous(x), gamma, mean, variance, contiguous(g), contiguous(y))

    return run_after_relu if op.relu else run


@numba_kernel(CropMirror, dtypes=("float32",))
def crop_mirror(op: CropMirror, library: Library) -> Function:
    size = op.size
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("crop.c", "crop_mirror", "aaaaaannnnn", types.int32)
    outside = f"{op}: a crop extends beyond its image"
    mismatch = f"{op}: the mean must be of the shape of one image, and rows, columns and mirrors of the batch's length"

    def run(images: Array, mean: Array, rows: Array, columns: Array, mirrors: Array) -> Array:
        images = contiguous(images)
        mean = np.ascontiguousarray(mean)
        rows = np.ascontiguousarray(rows)
        columns = np.ascontiguousarray(columns)
        mirrors = np.ascontiguousarray(mirrors)
        channels, height, width, batch = images.shape
        if mean.shape != images.shape[:3] or not len(rows) == len(columns) == len(mirrors) == batch:
            raise ValueError(mismatch)
        for b in range(batch):
            if not (0 <= rows[b] <= height - size and 0 <= columns[b] <= width - size):
                raise ValueError(outside)
        out = empty((channels, size, size, batch), mean.dtype)
        failed = loop(
            images.ctypes.data, mean.ctypes.data, rows.ctypes.data, columns.ctypes.data, mirrors.ctypes.data,
            out.ctypes.data, channels, height, width, batch, size
        )
        keep(images)
        keep(mean)
        keep(rows)
        keep(columns)
        keep(mirrors)
        if failed:
            raise MemoryError("a kernel could not allocate its working memory: use a smaller batch or fewer threads")
        return out

    return run


@register_jitable
def mix(word: np.uint64) -> np.uint64:
    """The hash alexnet.ops.inverted_dropout.mix of a 32-bit word."""
    word = np.uint64(word)
    word = (word ^ (word >> np.uint64(16))) * np.uint64(0x7FEB352D) & np.uint64(0xFFFFFFFF)
    word = (word ^ (word >> np.uint64(15))) * np.uint64(0x846CA68B) & np.uint64(0xFFFFFFFF)
    return word ^ (word >> np.uint64(16))


@register_jitable
def add_golden(key: np.uint64) -> np.uint64:
    """Return the argument of mix for the next word, as in alexnet.ops.inverted_dropout.keys."""
    return (key + np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)


@numba_kernel(InvertedDropout)
def dropout(op: InvertedDropout, library: Library) -> Function:
    stream, threshold, scale = op.stream, op.threshold, 1 / (1 - op.rate)
    empty, contiguous = library.empty, library.contiguous
    loop = library.function("dropout.c", "dropout", "aanuuur")

    def run(x: Array, seed: Array, step: Array) -> Array:
        x = contiguous(x)
        key = np.uint64(0)
        for number in (np.int64(seed.item()), np.int64(stream), np.int64(step.item())):
            bits = np.uint64(number)
            for word in (bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)):
                key = mix(add_golden(key) ^ word)
        y = empty(x.shape, x.dtype)
        loop(x.ctypes.data, y.ctypes.data, x.size, key, mix(add_golden(key)), threshold, scale)
        keep(x)
        return y

    return run
