"""Elementwise nodes on the CPU: one parallel C loop per formula, generated from the C code of scalar Ops.

The arrays of a node are viewed as matrices (rows, columns). An input is full, a scalar, one value per row (a bias along
the leading axes) or one value per column. PyTensor computes all other nodes. Shapes are arguments of the loop, so
arrays of any size and number of axes share the code of their formula. Constants and functions are float, not double.
NaN propagates: the code is not compiled with -ffast-math.
"""

import math

import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from pytensor.graph.basic import Constant
from pytensor.tensor.elemwise import Elemwise

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler

SMALL = 4096                                     # elements; below this size NumPy is as fast
C_TYPES = {
    "float32": "float",
    "bool": "unsigned char",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
NAMES = (                                        # scalar Ops whose C++ code is also valid C
    "Add Mul Sub TrueDiv Neg Reciprocal Sqr Sqrt Abs Sign Maximum Minimum Clip Exp Log Log1p Expm1 Pow Tanh Sigmoid "
    "Softplus LT GT LE GE EQ NEQ AND OR Invert Switch Cast Second Identity"
)
SCALAR_OPS = tuple(getattr(ps, name) for name in NAMES.split())
PROLOGUE = """
#include <math.h>
#include <stdint.h>
#include <tgmath.h>
#undef nan
#define nan(tag) NAN
""" + "\n".join(f"typedef {c_type} npy_{dtype};" for dtype, c_type in C_TYPES.items())
LOOP = """
enum {{ BLOCK = 4096 }};

void loop(long rows, long columns, {arguments})
{{
    const long blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) schedule(static) if (rows * columns > 8 * BLOCK)
    for (long r = 0; r < rows; r++)
        for (long k = 0; k < blocks; k++) {{
            const long last = (k + 1) * BLOCK < columns ? (k + 1) * BLOCK : columns;
            {fixed}
#pragma omp simd
            for (long j = k * BLOCK; j < last; j++) {{
                {loads}
                {code}
                {stores}
            }}
        }}
}}
"""


@kernel.register(Elemwise)
def elemwise(op, node):
    found = as_matrices(node)
    size = math.prod(SMALL if n is None else n for n in node.outputs[0].type.shape)
    if size < SMALL or found is None or not _expressible(node):
        return None
    split, kinds, broadcast = found
    input_dtypes, dtypes = ([variable.type.dtype for variable in vs] for vs in (node.inputs, node.outputs))
    source = _source(op.scalar_op, kinds, input_dtypes, dtypes)
    loop = compiler.Function(source, "elemwise", "loop", "nn" + "a" * len(input_dtypes + dtypes))

    def run(*inputs):
        shape = _shape(inputs, broadcast)
        rows = math.prod(shape[:split])
        arrays = [np.asarray(array, order="C") for array in inputs]
        outputs = [
            arrays[op.inplace_pattern[i]] if i in op.inplace_pattern else allocator.empty(shape, dtype)
            for i, dtype in enumerate(dtypes)
        ]
        loop(rows, math.prod(shape[split:]), *arrays, *outputs)
        for i, destroyed in op.inplace_pattern.items():
            if arrays[destroyed] is not inputs[destroyed]:          # a strided array was copied before the loop
                np.copyto(inputs[destroyed], outputs[i])
                outputs[i] = inputs[destroyed]
        return outputs

    return run


def as_matrices(node):
    """Return (split, kinds, broadcast) if a loop over rows and columns can compute a node, else None.

    split      number of leading axes that form the rows
    kinds      for each input "full", "scalar", "row" or "column"
    broadcast  for each input the set of its broadcast axes
    """
    out = node.outputs[0].type.shape
    broadcast = [
        frozenset(axis for axis, (n, m) in enumerate(zip(variable.type.shape, out, strict=True)) if n == 1 != m)
        for variable in node.inputs
    ]
    moving = frozenset(axis for axis, n in enumerate(out) if n != 1)
    for split in range(len(out) + 1):
        rows, columns = moving & set(range(split)), moving & set(range(split, len(out)))
        kinds = {columns: "row", rows: "column", moving: "scalar", frozenset(): "full"}      # later keys override
        if all(axes in kinds for axes in broadcast):
            return split, tuple(kinds[axes] for axes in broadcast), broadcast
    return None


def _shape(inputs, broadcast):
    """Return the shape of the outputs; raise ValueError if the shapes of the inputs do not match."""
    lengths = [
        {array.shape[axis] for array, axes in zip(inputs, broadcast, strict=True) if axis not in axes}
        for axis in range(inputs[0].ndim)
    ]
    if any(len(different) > 1 for different in lengths):
        shapes = ", ".join(str(array.shape) for array in inputs)
        raise ValueError(f"elementwise arrays must have equal shapes, got {shapes}")
    return tuple(different.pop() for different in lengths)


def _formula(scalar_op, dtypes):
    """Return (inputs, steps, outputs) of a formula: the graph of a Composite, or the node of a scalar Op."""
    if isinstance(scalar_op, ps.Composite):
        graph = scalar_op.fgraph
        return graph.inputs, graph.toposort(), graph.outputs
    node = scalar_op.make_node(*(ps.get_scalar_type(dtype)() for dtype in dtypes))
    return node.inputs, [node], node.outputs


def _expressible(node):
    """Whether all steps of the node's formula are in SCALAR_OPS and all its types are in C_TYPES."""
    dtypes = [variable.type.dtype for variable in node.inputs]
    if not C_TYPES.keys() >= {*dtypes, *(variable.type.dtype for variable in node.outputs)}:
        return False
    _, steps, _ = _formula(node.op.scalar_op, dtypes)
    return all(
        isinstance(step.op, SCALAR_OPS) and all(v.type.dtype in C_TYPES for v in step.inputs + step.outputs)
        for step in steps
    )


def _source(scalar_op, kinds, input_dtypes, output_dtypes):
    """Return the C source of the loop of a formula."""
    places = {"full": "r * columns + j", "column": "j", "row": "r", "scalar": "0"}
    arguments = [f"const npy_{dtype} *in{n}" for n, dtype in enumerate(input_dtypes)]
    arguments += [f"npy_{dtype} *out{n}" for n, dtype in enumerate(output_dtypes)]
    body = loop_body(scalar_op, [places[kind] for kind in kinds], input_dtypes, places["full"])
    return PROLOGUE + LOOP.format(arguments=", ".join(arguments), **body)


def loop_body(scalar_op, places, dtypes, place):
    """Return the C statements of a formula by part: fixed (before the loop over j), loads, code and stores.

    places  C index expression of each input in its array (in0, in1, …); an expression without j belongs to fixed
    dtypes  dtype of each input
    place   C index expression of the outputs in out0, out1, …
    """
    fixed, loads = [], []
    for n, (at, dtype) in enumerate(zip(places, dtypes, strict=True)):
        (loads if "j" in at else fixed).append(f"const npy_{dtype} i{n} = in{n}[{at}];")
    code, results = _code(*_formula(scalar_op, dtypes))
    stores = [f"out{n}[{place}] = {result};" for n, result in enumerate(results)]
    parts = {"fixed": fixed, "loads": loads, "code": code, "stores": stores}
    return {part: "\n                ".join(lines) for part, lines in parts.items()}


def _code(inputs, steps, outputs):
    """Return the C statements of the steps, and the names of the outputs. The inputs are named i0, i1, …"""
    names = {variable: f"i{n}" for n, variable in enumerate(inputs)}
    lines = []
    for step in steps:
        for variable in step.inputs:
            if isinstance(variable, Constant):
                names[variable] = f"((npy_{variable.type.dtype}){variable.type.c_literal(variable.data)})"
        for variable in step.outputs:
            names[variable] = f"t{len(names)}"
            lines.append(f"npy_{variable.type.dtype} {names[variable]};")
        own = [[names[variable] for variable in variables] for variables in (step.inputs, step.outputs)]
        lines.append(step.op.c_code(step, f"step{len(names)}", *own, {"fail": "", "id": str(len(names))}))
    return lines, [names[variable] for variable in outputs]


def many(scalar_op, inputs):
    """Whether a node adds or multiplies more than two inputs; no ufunc does, so NumPy would call Python per element."""
    return isinstance(scalar_op, ps.Add | ps.Mul) and len(inputs) > 2


def unfused(node):
    """Split a fused node, or a node of many inputs, into nodes of one NumPy call each; return the new outputs."""
    inputs, steps, outputs = _formula(node.op.scalar_op, [variable.type.dtype for variable in node.inputs])
    values = dict(zip(inputs, node.inputs, strict=True))
    for step in steps:
        for variable in step.inputs:
            if isinstance(variable, Constant):
                values[variable] = pt.constant(variable.data, dtype=variable.type.dtype)
        operands = [values[variable] for variable in step.inputs]
        while many(step.op, operands):
            operands[:2] = [Elemwise(step.op)(*operands[:2])]
        values.update(zip(step.outputs, Elemwise(step.op)(*operands, return_list=True), strict=True))
    return [values[variable] for variable in outputs]
