"""Shared code of the Ops: static and symbolic output shapes from one formula, and validation of inputs."""

import operator
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, TypeAlias, cast, overload

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.op import Op
from pytensor.tensor import TensorLike
from pytensor.tensor.variable import TensorVariable

Length: TypeAlias = int | Variable | None        # of an axis; None: unknown when the graph is built
Shape: TypeAlias = tuple[Length, ...]
Inputs = Sequence[Variable]
Arrays = Sequence[np.ndarray]
Storages = Sequence[list[np.ndarray | None]]     # of the outputs of perform, which sets element 0 of each


class ShapedOp(Op):
    """An Op with a NumPy reference and, where one is registered, a C kernel. Its output shapes are defined in `shapes`.

    Each length in input_shapes is an int, None (unknown at graph construction) or a symbolic integer. A length that
    depends on None is None.
    """

    @abstractmethod
    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shape of each output."""

    @abstractmethod
    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute the outputs with NumPy, in the dtype of the inputs."""

    def perform(self, node: Apply, inputs: Arrays, outputs: Storages) -> None:
        """Compute the outputs with the C kernel of the node, or else with the NumPy reference."""
        from alexnet.ops.kernels import run_of  # here, because the kernels are registered for the subclasses

        for storage, value in zip(outputs, run_of(self, node)(*inputs), strict=True):
            storage[0] = value

    def array_shapes(self, *input_shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the output shapes for arrays of these shapes; for Ops whose inputs do not contain lengths."""
        return cast(list[tuple[int, ...]], self.shapes((), input_shapes))

    def apply(self, inputs: Inputs, dtypes: Sequence[str]) -> Apply:
        """Return an Apply node with one output per dtype; each output gets its static shape."""
        shapes = self.shapes(inputs, [variable.type.shape for variable in inputs])
        static = [tuple(static_length(n) for n in shape) for shape in shapes]
        outputs = [pt.tensor(dtype=dtype, shape=shape) for dtype, shape in zip(dtypes, static, strict=True)]
        return Apply(self, inputs, outputs)

    def infer_shape(self, *arguments: Any) -> list[Shape]:
        """Return symbolic output shapes. PyTensor 3.0 passes (fgraph, node, shapes), newer versions (node, shapes)."""
        node, input_shapes = arguments[-2:]
        return self.shapes(node.inputs, input_shapes)


def whole_number(name: str, value: Any, least: int) -> int:
    """Return value as an int.

    Raises:
        TypeError: value is not an integer.
        ValueError: value is below least.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def float_tensor(op: Op, name: str, value: TensorLike, ndim: int | None = 4) -> TensorVariable:
    """Return value as a symbolic variable.

    Raises:
        TypeError: the dtype is not float32 or float64, or the variable does not have ndim axes (None: any number).
    """
    variable = pt.as_tensor_variable(value)
    if variable.type.dtype not in ("float32", "float64"):
        raise TypeError(f"{op}: {name} must be float32 or float64, got {variable.type.dtype}")
    if ndim is not None and variable.type.ndim != ndim:
        raise TypeError(f"{op}: {name} must have {ndim} axes, got {variable.type.ndim}")
    return variable


def integer_tensor(op: Op, name: str, value: TensorLike, dtype: str, ndim: int) -> TensorVariable:
    """Return value as a symbolic variable of the given integer dtype. Integer scalars of other dtypes are cast.

    Raises:
        TypeError: the variable does not have ndim axes, or has another dtype and is not an integer scalar.
    """
    if ndim == 0 and isinstance(value, int):
        return pt.constant(value, dtype=dtype)
    variable = pt.as_tensor_variable(value)
    if variable.type.ndim != ndim:
        raise TypeError(f"{op}: {name} must have {ndim} axes, got {variable.type.ndim}")
    if variable.type.dtype == dtype:
        return variable
    if ndim == 0 and variable.type.dtype.startswith(("int", "uint")):
        return pt.cast(variable, dtype)
    raise TypeError(f"{op}: {name} must be {dtype}, got {variable.type.dtype}")


def length_tensor(op: Op, name: str, value: TensorLike) -> TensorVariable:
    """Return a length, such as the height of an image, as a symbolic int64 scalar. Raises TypeError as above."""
    return integer_tensor(op, name, value, "int64", 0)


def same_dtype(op: Op, *variables: TensorVariable) -> str:
    """Return the common dtype of the variables. Raises TypeError if they differ."""
    dtypes = {variable.type.dtype for variable in variables}
    if len(dtypes) > 1:
        raise TypeError(f"{op}: inputs must share one dtype, got {', '.join(sorted(dtypes))}")
    return dtypes.pop()


def length(variable: Variable) -> Length:
    """Return the value of a constant scalar as an int, or the variable itself if it is not constant."""
    return int(variable.data) if isinstance(variable, Constant) else variable


def static_length(n: Length) -> int | None:
    """Return a length if it is known when the graph is built, else None."""
    return n if isinstance(n, int) else None


@overload
def windows_along(n: int, size: int, stride: int, pad: int = 0, ceil: bool = False) -> int: ...
@overload
def windows_along(n: Length, size: Length, stride: int, pad: int = 0, ceil: bool = False) -> Length: ...
def windows_along(n: Length, size: Length, stride: int, pad: int = 0, ceil: bool = False) -> Length:
    """Return the number of windows of `size` with `stride` on n elements padded by `pad` on both sides, or None.

    Args:
        ceil: count an incomplete last window, unless it starts after the n elements. Source: BVLC Caffe,
            src/caffe/layers/pooling_layer.cpp.
    """
    if n is None or size is None:
        return None
    if isinstance(n, int) and isinstance(size, int):
        return window_count(n, size, stride, pad, ceil)
    if not ceil:
        return (n + 2 * pad - size) // stride + 1
    return pt.minimum(-((size - n - 2 * pad) // stride) + 1, (n + pad - 1) // stride + 1)


def window_count(n: int, size: int, stride: int, pad: int, ceil: bool) -> int:
    """Return windows_along() of integers; Numba compiles it, too."""
    if not ceil:
        return (n + 2 * pad - size) // stride + 1
    return min(-((size - n - 2 * pad) // stride) + 1, (n + pad - 1) // stride + 1)


def height_and_width(x: TensorVariable) -> list[Length]:
    """Return the lengths of axes 1 and 2 of x, each as an int if static, otherwise symbolic."""
    return [x.shape[axis] if x.type.shape[axis] is None else x.type.shape[axis] for axis in (1, 2)]


class WindowOp(ShapedOp):
    """An Op on the windows of an image: size x size pixels, `stride` pixels apart.

    Pixels after the last full window are ignored, unless `ceil` is set. Subclasses that pad the image or pool
    incomplete windows set `pad` and `ceil` in __init__.
    """

    __props__: tuple[str, ...] = ("size", "stride")
    pad = 0
    ceil = False

    def __init__(self, size: int, stride: int) -> None:
        self.size = whole_number("pooling size", size, least=1)
        self.stride = whole_number("pooling stride", stride, least=1)

    def pooled(self, height: Length, width: Length) -> tuple[Length, Length]:
        """Return (out_height, out_width), the numbers of windows on height x width pixels; None if unknown."""
        return (
            windows_along(height, self.size, self.stride, self.pad, self.ceil),
            windows_along(width, self.size, self.stride, self.pad, self.ceil),
        )

    def views(self, x: np.ndarray, out_height: int, out_width: int) -> Iterator[np.ndarray]:
        """Yield for each pixel of a window, row by row, the view of the padded x with that pixel of every window."""
        for i, j in product(range(self.size), repeat=2):
            row_slice = slice(i, i + self.stride * (out_height - 1) + 1, self.stride)
            yield x[:, row_slice, j : j + self.stride * (out_width - 1) + 1 : self.stride]

    def check(self, x_shape: Shape) -> None:
        """Raise ValueError if a known height or width is below the window size."""
        for n in x_shape[1:3]:
            if n is not None and n + 2 * self.pad < self.size:
                pixels = f"{n + 2 * self.pad} padded" if self.pad else n
                raise ValueError(f"{self}: windows of size {self.size} need at least as many pixels, got {pixels}")
