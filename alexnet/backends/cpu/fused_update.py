"""Dense layers: weight gradient and parameter update in one kernel; the gradient is never written to main memory.

AlexNet's dense layers have 58.6 million weights, and at small batch sizes they are memory-bound. Without fusion the
whole gradient is allocated, written, and read again by the update. With fusion each task of filter_gradient.c computes
a piece of the gradient that stays in the cache. The update formula (elemwise.py) then updates the matching piece of the
weights and velocities. Fused and separate results are bit-identical.
"""

import ctypes
import math

import numpy as np
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.op import Op
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape

from alexnet.backends.cpu import allocator, elemwise
from alexnet.backends.cpu.kernels import convolution
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler
from alexnet.ops import ConvolutionFilterGradient

FILTER_GRADIENT = convolution.DIRECT["filter_gradient"]
ROW = """
void receive(void *const *arrays, const float *gradient, long start, long n)
{{
                {arrays}
                {fixed}
#pragma omp simd
    for (long j = 0; j < n; j++) {{
                {loads}
                {code}
                {stores}
    }}
}}
"""


class FilterGradientUpdate(Op):
    """Updates arrays in place with the filter gradient: (x, g, rows, columns, *arrays) -> the updated arrays.

    gradient  ConvolutionFilterGradient of (x, g, rows, columns)
    update    in-place Elemwise whose inputs are the arrays and the gradient
    place     position of the gradient among the inputs of update
    """

    __props__ = ("gradient", "update", "place")

    def __init__(self, gradient, update, place):
        self.gradient, self.update, self.place = gradient, update, place
        self.destroy_map = {
            output: [4 + destroyed - (destroyed > place)] for output, destroyed in update.inplace_pattern.items()
        }

    def make_node(self, *inputs):
        outputs = [inputs[self.destroy_map[n][0]].type() for n in range(len(self.destroy_map))]
        return Apply(self, inputs, outputs)

    def perform(self, node, inputs, outputs):
        raise NotImplementedError(f"{self} is a kernel of the cpu backend only")


def fuse(fgraph):
    """Fuse the weight gradient of each dense layer with its update, if nothing else uses the gradient."""
    for node in fgraph.toposort():
        place = gradient_place(fgraph, node)
        if place is not None:
            gradient = gradient_of(fgraph, node.inputs[place])
            others = node.inputs[:place] + node.inputs[place + 1 :]
            outputs = FilterGradientUpdate(gradient.op, node.op, place).make_node(*gradient.inputs, *others).outputs
            fgraph.replace_all(list(zip(node.outputs, outputs, strict=True)), reason="dense update")


def gradient_place(fgraph, node):
    """Return the position of the input that is the gradient to fuse; None if the node is not such an update."""
    if not isinstance(node.op, Elemwise) or len(node.op.inplace_pattern) < len(node.outputs):
        return None
    _, kinds, _ = elemwise.as_matrices(node) or (None, (), None)
    found = [n for n, variable in enumerate(node.inputs) if gradient_of(fgraph, variable)]
    if len(found) != 1 or found[0] in node.op.inplace_pattern.values() or kernel(node.op, node) is None:
        return None
    return found[0] if kinds[found[0]] == "full" and {*kinds} <= {"full", "scalar"} else None


def gradient_of(fgraph, variable):
    """Return the dense weight gradient node behind a possibly reshaped variable; None if it has other uses."""
    while variable.owner and len(fgraph.clients[variable]) == 1:
        op = variable.owner.op
        if isinstance(op, ConvolutionFilterGradient):
            return variable.owner if is_dense(*variable.owner.inputs) and variable.type.dtype == "float32" else None
        if not (isinstance(op, Reshape) or isinstance(op, DimShuffle) and list(op.shuffle) == sorted(op.shuffle)):
            return None
        variable = variable.owner.inputs[0]
    return None


def is_dense(x, g, rows, columns):
    """Whether images and filters are single pixels; the tasks for larger ones are cut differently."""
    return x.type.shape[1:3] == (1, 1) and all(isinstance(n, Constant) and n.data == 1 for n in (rows, columns))


@kernel.register(FilterGradientUpdate)
def filter_gradient_update(op, node):
    update = update_node(op, node)
    source, full = row_source(update, op.place)
    compiler.request(source, "update")
    compiler.request(compiler.source_of(FILTER_GRADIENT), FILTER_GRADIENT.stem)
    update_apart = kernel(update.op, update)

    def run(x, g, rows, columns, *arrays):
        x, g, arrays = np.ascontiguousarray(x), np.ascontiguousarray(g), [np.asarray(array) for array in arrays]
        filters = x.shape[0] // op.gradient.groups, int(rows), int(columns), g.shape[0]
        op.gradient.check(x.shape, filters, g.shape)
        in_order = all(arrays[n].flags.c_contiguous and arrays[n].size == math.prod(filters) for n in full)
        if in_order and x.shape[3] == g.shape[3]:
            layer = convolution.Layer(*x.shape, g.shape[0], int(rows), int(columns), *op.gradient.geometry)
            _run(x, g, layer, compiler.load(source, "update").receive, arrays, full)
            return [arrays[op.destroy_map[n][0] - 4] for n in range(len(op.destroy_map))]
        dw = allocator.empty(filters, np.float32)
        convolution.filter_gradient(x, g, *op.gradient.geometry, dw)
        return update_apart(*arrays[: op.place], dw.reshape(arrays[full[0]].shape), *arrays[op.place :])

    return run


def update_node(op, node):
    """Return the separate update node, with a new variable as its gradient."""
    others = node.inputs[4:]
    return op.update.make_node(*others[: op.place], node.outputs[0].type(), *others[op.place :])


def row_source(update, place):
    """Return the C source that updates one row, and the indices of the arrays that are shaped like the filters."""
    _, kinds, _ = elemwise.as_matrices(update)
    dtypes = [variable.type.dtype for variable in update.inputs]
    arrays = [f"arrays[{n - (n > place)}]" for n in range(len(kinds))]
    places = ["start + j" if kind == "full" else "0" for kind in kinds]
    arrays[place], places[place] = "gradient", "j"
    names = [f"const npy_{dtypes[n]} *in{n} = {array};" for n, array in enumerate(arrays)]
    names += [f"npy_{dtypes[n]} *out{output} = {arrays[n]};" for output, n in update.op.inplace_pattern.items()]
    body = elemwise.loop_body(update.op.scalar_op, places, dtypes, "start + j")
    full = [n for n, kind in enumerate(kinds[:place] + kinds[place + 1 :]) if kind == "full"]
    return elemwise.PROLOGUE + ROW.format(arrays=f"\n{16 * ' '}".join(names), **body), full


def _run(x, g, layer, receive, arrays, full):
    """Call filter_gradient.c, which passes each row of the gradient and the addresses of the arrays to `receive`.

    full  indices of the arrays that are shaped like the filters; these are prefetched
    """
    functions, sizes = compiler.library(FILTER_GRADIENT), (ctypes.c_int64 * len(layer))(*layer)
    workspace_bytes = functions.filter_gradient_update_workspace
    workspace_bytes.restype = ctypes.c_int64
    workspace = allocator.empty((workspace_bytes(sizes),), np.uint8)
    addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    shaped = (ctypes.c_void_p * (len(full) + 1))(*(addresses[n] for n in full), None)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, g, workspace)]
    functions.filter_gradient_update(sizes, *pointers[:2], receive, addresses, shaped, pointers[2])
