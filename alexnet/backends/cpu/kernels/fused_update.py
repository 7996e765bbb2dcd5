"""Dense layers: weight gradient and parameter update in one kernel; the gradient is never written to main memory.

AlexNet's dense layers have 58.6 million weights, and at small batch sizes they are memory-bound. Without fusion the
whole gradient is allocated, written, and read again by the update. With fusion each task of filter_gradient.c computes
a piece of the gradient that stays in the cache. The update formula (elemwise.py) then updates the matching piece of the
weights and velocities. Fused and separate results are bit-identical.
"""

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape
from pytensor.tensor.variable import TensorVariable

from alexnet.backends.cpu.kernels import elemwise
from alexnet.backends.cpu.kernels.elemwise import SumPick
from alexnet.native import allocator, compiler
from alexnet.ops import ConvolutionFilterGradient
from alexnet.ops.base import Arrays, Storages
from alexnet.ops.kernels import convolution
from alexnet.ops.registry import Run, cpu_kernel, kernel_of

FILTER_GRADIENT = convolution.DIRECT["filter_gradient"]
ROW = """
void receive(void *const *arrays, const float *gradient, long start, long n)
{{
                {arrays}
                {invariant}
    {declarations}
#pragma omp simd {reduction}
    for (long j = 0; j < n; j++) {{
                {loads}
                {code}
                {stores}
                {additions}
    }}
    {totals}
}}
"""
ADD_SUM = """
#pragma omp atomic
    ((uint32_t *)arrays[{}])[{{}}] += {{}};"""       # several threads call receive()


class FilterGradientUpdate(Op):
    """Updates arrays in place with the filter gradient: (x, g, filter_height, filter_width, *arrays) -> updated arrays.

    gradient  ConvolutionFilterGradient of the first four inputs
    update    in-place Elemwise whose inputs are the arrays and the gradient
    position  of the gradient among the inputs of update
    """

    __props__ = ("gradient", "update", "position")

    def __init__(self, gradient: ConvolutionFilterGradient, update: Elemwise, position: int) -> None:
        self.gradient = gradient
        self.update = update
        self.position = position
        self.destroy_map = {
            output: [4 + destroyed - (destroyed > position)] for output, destroyed in update.inplace_pattern.items()
        }

    def make_node(self, *inputs: Variable) -> Apply:
        outputs = [inputs[self.destroy_map[n][0]].type() for n in range(len(self.destroy_map))]
        return Apply(self, inputs, outputs)

    def perform(self, node: Apply, inputs: Arrays, outputs: Storages) -> None:
        raise NotImplementedError(f"{self} is a kernel of the cpu backend only")


def fuse(fgraph: FunctionGraph) -> None:
    """Fuse the weight gradient of each dense layer with its update, if nothing else uses the gradient."""
    for node in fgraph.toposort():
        if found := gradient_input(fgraph, node):
            position, gradient = found
            others = node.inputs[:position] + node.inputs[position + 1 :]
            fused = FilterGradientUpdate(gradient.op, node.op, position).make_node(*gradient.inputs, *others)
            fgraph.replace_all(list(zip(node.outputs, fused.outputs, strict=True)), reason="dense update")


def gradient_input(fgraph: FunctionGraph, node: Apply) -> tuple[int, Apply] | None:
    """Return the position of the input to fuse, and the gradient node behind it; None if there is nothing to fuse."""
    if not isinstance(node.op, Elemwise) or len(node.op.inplace_pattern) < len(node.outputs):
        return None
    view = elemwise.matrix_view(node)
    gradients = [(n, gradient) for n, each in enumerate(node.inputs) if (gradient := gradient_node(fgraph, each))]
    if view is None or len(gradients) != 1:
        return None
    position = gradients[0][0]
    if position in node.op.inplace_pattern.values() or kernel_of(node.op, node) is None:
        return None
    return gradients[0] if view.extents[position] == "full" and {*view.extents} <= {"full", "scalar"} else None


def gradient_node(fgraph: FunctionGraph, variable: Variable) -> Apply | None:
    """Return the dense weight gradient node behind a possibly reshaped variable; None if it has other uses."""
    while variable.owner and len(fgraph.clients[variable]) == 1:
        op = variable.owner.op
        if isinstance(op, ConvolutionFilterGradient):
            return variable.owner if is_dense(*variable.owner.inputs) and variable.type.dtype == "float32" else None
        if not (isinstance(op, Reshape) or isinstance(op, DimShuffle) and list(op.shuffle) == sorted(op.shuffle)):
            return None
        variable = variable.owner.inputs[0]
    return None


def is_dense(x: TensorVariable, g: TensorVariable, filter_height: Variable, filter_width: Variable) -> bool:
    """Return True if images and filters are single pixels; the tasks for larger ones are cut differently."""
    lengths = filter_height, filter_width
    return x.type.shape[1:3] == (1, 1) and all(isinstance(n, Constant) and n.data == 1 for n in lengths)


@cpu_kernel(FilterGradientUpdate)
def filter_gradient_update(op: FilterGradientUpdate, node: Apply) -> Run:
    return update_of(op, node)


def update_of(op: FilterGradientUpdate, node: Apply, sums: Sequence[SumPick] = ()) -> Run:
    """Return the function that computes a FilterGradientUpdate.

    Args:
        sums: it also returns these sums of bits; see elemwise.loop_of.
    """
    update = update_node(op, node)
    source, filter_shaped = row_source(update, op.position, sums)
    compiler.request(source, "update")
    compiler.request(FILTER_GRADIENT)
    update_separately = elemwise.loop_of(update, sums)

    def run(
        x: np.ndarray, g: np.ndarray, filter_height: np.ndarray, filter_width: np.ndarray, *inputs: np.ndarray
    ) -> Arrays:
        x = np.ascontiguousarray(x)
        g = np.ascontiguousarray(g)
        arrays = [np.asarray(array) for array in inputs]
        channels, height, width, batch = x.shape
        geometry = op.gradient.geometry
        sizes = convolution.Sizes(
            channels, height, width, batch, g.shape[0], int(filter_height), int(filter_width), *geometry
        )
        filters = channels // sizes.groups, sizes.filter_height, sizes.filter_width, sizes.outputs
        op.gradient.check(x.shape, filters, g.shape)
        size = math.prod(filters)
        in_order = all(arrays[n].flags.c_contiguous and arrays[n].size == size for n in filter_shaped)
        if in_order and size and batch and batch == g.shape[3]:
            found = [np.zeros(len(sums), np.uint32)] if sums else []
            receive = compiler.load(source, "update").receive
            _run(x, g, sizes, receive, [*arrays, *found], filter_shaped)
            return [arrays[op.destroy_map[n][0] - 4] for n in range(len(op.destroy_map))] + found
        dW = allocator.empty(filters, np.float32)
        convolution.filter_gradient(x, g, *geometry, dW)
        dW = dW.reshape(arrays[filter_shaped[0]].shape)
        return update_separately(*arrays[: op.position], dW, *arrays[op.position :])

    return run


def update_node(op: FilterGradientUpdate, node: Apply) -> Apply:
    """Return the separate update node, with a new variable as its gradient."""
    others = node.inputs[4:]
    return op.update.make_node(*others[: op.position], node.outputs[0].type(), *others[op.position :])


def row_source(update: Apply, position: int, sums: Sequence[SumPick]) -> tuple[str, list[int]]:
    """Return the C source that updates one row, and the indices of the arrays that are shaped like the filters.

    If there are sums, the last of the arrays is theirs.
    """
    view = elemwise.matrix_view(update)
    assert view is not None                      # gradient_input() has checked it
    dtypes = [variable.type.dtype for variable in update.inputs]
    arrays = [f"arrays[{n - (n > position)}]" for n in range(len(dtypes))]
    arrays[position] = "gradient"
    indices = ["start + j" if extent == "full" else "0" for extent in view.extents]
    indices[position] = "j"
    names = [f"const npy_{dtypes[n]} *in{n} = {array};" for n, array in enumerate(arrays)]
    names += [f"npy_{dtypes[n]} *out{output} = {arrays[n]};" for output, n in update.op.inplace_pattern.items()]
    body = elemwise.loop_body(update.op.scalar_op, indices, dtypes, "start + j")
    others = view.extents[:position] + view.extents[position + 1 :]
    filter_shaped = [n for n, extent in enumerate(others) if extent == "full"]
    statements = elemwise.SumStatements()
    prologue = elemwise.PROLOGUE
    if sums:
        statements = elemwise.sum_statements(update.op, body, sums, ADD_SUM.format(len(others)))
        prologue += elemwise.BITS
    row = ROW.format(arrays=f"\n{16 * ' '}".join(names), **body._asdict(), **statements._asdict())
    return prologue + row, filter_shaped


def _run(
    x: np.ndarray, g: np.ndarray, sizes: convolution.Sizes, receive: Callable[..., None],
    arrays: Sequence[np.ndarray], filter_shaped: Sequence[int],
) -> None:
    """Call filter_gradient.c, which passes each row of the gradient and the addresses of the arrays to `receive`.

    The arrays that are shaped like the filters are prefetched; filter_shaped has their indices.
    """
    library = compiler.load(FILTER_GRADIENT)
    c_sizes = (ctypes.c_int64 * len(sizes))(*sizes)
    workspace_bytes = library.filter_gradient_update_workspace
    workspace_bytes.restype = ctypes.c_int64
    workspace = allocator.empty((workspace_bytes(c_sizes),), np.uint8)
    addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    prefetched = (ctypes.c_void_p * (len(filter_shaped) + 1))(*(addresses[n] for n in filter_shaped), None)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, g, workspace)]
    library.filter_gradient_update(c_sizes, *pointers[:2], receive, addresses, prefetched, pointers[2])
