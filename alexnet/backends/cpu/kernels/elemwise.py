"""Elementwise nodes on the CPU: one parallel C loop per formula, generated from the C code of scalar Ops.

The arrays of a node are viewed as matrices (rows, columns). An input has one value per element, one in all, one per
row (a bias along the leading axes) or one per column. PyTensor computes all other nodes. Shapes are arguments of the
loop, so arrays of any size and number of axes share the code of their formula. Constants and functions are float, not
double. NaN propagates: the code is not compiled with -ffast-math.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pytensor.scalar as ps
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.scalar import ScalarOp
from pytensor.tensor.elemwise import Elemwise

from alexnet.native import allocator, compiler
from alexnet.ops.registry import Run, cpu_kernel

SMALL = 4096                                     # elements; below this size NumPy is as fast
C_TYPES = {
    "float32": "float",
    "bool": "unsigned char",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
SCALAR_OPS = (                                   # those whose C++ code is also valid C
    ps.Add, ps.Mul, ps.Sub, ps.TrueDiv, ps.Neg, ps.Reciprocal, ps.Sqr, ps.Sqrt, ps.Abs, ps.Sign, ps.Maximum, ps.Minimum,
    ps.Clip, ps.Exp, ps.Log, ps.Log1p, ps.Expm1, ps.Pow, ps.Tanh, ps.Sigmoid, ps.Softplus, ps.LT, ps.GT, ps.LE, ps.GE,
    ps.EQ, ps.NEQ, ps.AND, ps.OR, ps.Invert, ps.Switch, ps.Cast, ps.Second, ps.Identity,
)
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
    {declarations}
#pragma omp parallel for collapse(2) schedule(static) {reduction} if (rows * columns > 8 * BLOCK)
    for (long r = 0; r < rows; r++)
        for (long k = 0; k < blocks; k++) {{
            const long last = (k + 1) * BLOCK < columns ? (k + 1) * BLOCK : columns;
            {invariant}
#pragma omp simd {reduction}
            for (long j = k * BLOCK; j < last; j++) {{
                {loads}
                {code}
                {stores}
                {additions}
            }}
        }}
    {totals}
}}
"""
BITS = """
static inline uint32_t bits(float x) { uint32_t word; __builtin_memcpy(&word, &x, sizeof word); return word; }
"""
Extent = Literal["full", "row", "column", "scalar"]                                     # one value per element, ...
INDEX: dict[Extent, str] = {"full": "r * columns + j", "row": "r", "column": "j", "scalar": "0"}


class MatrixView(NamedTuple):
    """How the arrays of a node are viewed as matrices.

    split      number of leading axes that form the rows
    extents    of each input
    broadcast  for each input the set of its broadcast axes
    """

    split: int
    extents: tuple[Extent, ...]
    broadcast: list[frozenset[int]]


class LoopBody(NamedTuple):
    """C statements of a formula: those that do not depend on the loop variable j, and the three parts of the loop.

    written    C expression of each output, as it is stored
    """

    invariant: str
    loads: str
    code: str
    stores: str
    written: list[str]


class SumPick(NamedTuple):
    """A sum of bits: of the values of an output that is computed in place, or of the values that it replaces.

    written  whether it is the sum of the new values
    """

    output: int
    written: bool


class SumStatements(NamedTuple):
    """C statements that sum the bits of the values that a loop reads and writes in place; empty without sums."""

    declarations: str = ""
    reduction: str = ""
    additions: str = ""
    totals: str = ""


class Formula(NamedTuple):
    """A scalar graph: its inputs, its nodes in order, and its outputs."""

    inputs: Sequence[Variable]
    steps: Sequence[Apply]
    outputs: Sequence[Variable]


@cpu_kernel(Elemwise)
def elemwise(op: Elemwise, node: Apply) -> Run | None:
    return loop_of(node) if has_loop(node) else None


def has_loop(node: Apply) -> bool:
    """Return whether an Elemwise node is computed by a C loop."""
    size = math.prod(SMALL if n is None else n for n in node.outputs[0].type.shape)
    return size >= SMALL and matrix_view(node) is not None and _expressible(node)


def sums_in_loop(node: Apply) -> bool:
    """Return whether the C loop of an Elemwise node can sum the bits of what it reads and writes; see loop_of()."""
    dtypes = {variable.type.dtype for variable in node.outputs}
    return has_loop(node) and dtypes == {"float32"} and len(node.op.inplace_pattern) == len(node.outputs)


def loop_of(node: Apply, sums: Sequence[SumPick] = ()) -> Run:
    """Return the function that computes an Elemwise node with a C loop.

    Args:
        sums: the function also returns these sums of the bits that it reads or writes in place, as an array.
    """
    op = node.op
    view = matrix_view(node)
    assert view is not None                      # has_loop() has checked it
    input_dtypes = [variable.type.dtype for variable in node.inputs]
    dtypes = [variable.type.dtype for variable in node.outputs]
    source = _source(op, view.extents, input_dtypes, dtypes, sums)
    n_arrays = len(input_dtypes + dtypes) + bool(sums)
    loop = compiler.function(source, "loop", "nn" + "a" * n_arrays, name="elemwise")
    split = view.split
    broadcast = view.broadcast

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        shape = _shape(inputs, broadcast)
        rows = math.prod(shape[:split])
        arrays = [np.asarray(array, order="C") for array in inputs]
        outputs = [
            arrays[op.inplace_pattern[i]] if i in op.inplace_pattern else allocator.empty(shape, dtype)
            for i, dtype in enumerate(dtypes)
        ]
        found = [np.empty(len(sums), np.uint32)] if sums else []
        loop(rows, math.prod(shape[split:]), *arrays, *outputs, *found)
        for i, destroyed in op.inplace_pattern.items():
            if arrays[destroyed] is not inputs[destroyed]:          # a strided array was copied before the loop
                np.copyto(inputs[destroyed], outputs[i])
                outputs[i] = inputs[destroyed]
        return outputs + found

    return run


def matrix_view(node: Apply) -> MatrixView | None:
    """Return how a loop over rows and columns can compute a node, or None if it cannot."""
    out = node.outputs[0].type.shape
    broadcast = [
        frozenset(axis for axis, (n, m) in enumerate(zip(variable.type.shape, out, strict=True)) if n == 1 != m)
        for variable in node.inputs
    ]
    axes = frozenset(axis for axis, n in enumerate(out) if n != 1)
    for split in range(len(out) + 1):
        rows = axes & set(range(split))
        columns = axes & set(range(split, len(out)))
        extents: dict[frozenset[int], Extent] = {             # broadcast axes -> extent; later keys override
            columns: "row", rows: "column", axes: "scalar", frozenset(): "full"
        }
        if all(each in extents for each in broadcast):
            return MatrixView(split, tuple(extents[each] for each in broadcast), broadcast)
    return None


def _shape(inputs: Sequence[np.ndarray], broadcast: Sequence[frozenset[int]]) -> tuple[int, ...]:
    """Return the shape of the outputs; raise ValueError if the shapes of the inputs do not match."""
    lengths = [
        {array.shape[axis] for array, axes in zip(inputs, broadcast, strict=True) if axis not in axes}
        for axis in range(inputs[0].ndim)
    ]
    if any(len(different) > 1 for different in lengths):
        shapes = ", ".join(str(array.shape) for array in inputs)
        raise ValueError(f"elementwise arrays must have equal shapes, got {shapes}")
    return tuple(different.pop() for different in lengths)


def _formula(scalar_op: ScalarOp, dtypes: Sequence[str]) -> Formula:
    """Return the graph of a Composite, or the node of another scalar Op, for inputs of these dtypes."""
    if isinstance(scalar_op, ps.Composite):
        graph = scalar_op.fgraph
        return Formula(graph.inputs, graph.toposort(), graph.outputs)
    node = scalar_op.make_node(*(ps.get_scalar_type(dtype)() for dtype in dtypes))
    return Formula(node.inputs, [node], node.outputs)


def _expressible(node: Apply) -> bool:
    """Return True if all steps of the node's formula are in SCALAR_OPS and all its types are in C_TYPES."""
    dtypes = [variable.type.dtype for variable in node.inputs]
    if not C_TYPES.keys() >= {*dtypes, *(variable.type.dtype for variable in node.outputs)}:
        return False
    return all(
        isinstance(step.op, SCALAR_OPS) and all(v.type.dtype in C_TYPES for v in step.inputs + step.outputs)
        for step in _formula(node.op.scalar_op, dtypes).steps
    )


def _source(
    op: Elemwise, extents: Sequence[Extent], input_dtypes: Sequence[str], output_dtypes: Sequence[str],
    sums: Sequence[SumPick],
) -> str:
    """Return the C source of the loop of a formula."""
    arguments = [f"const npy_{dtype} *in{n}" for n, dtype in enumerate(input_dtypes)]
    arguments += [f"npy_{dtype} *out{n}" for n, dtype in enumerate(output_dtypes)]
    arguments += ["uint32_t *sums"] if sums else []
    body = loop_body(op.scalar_op, [INDEX[extent] for extent in extents], input_dtypes, INDEX["full"])
    statements = sum_statements(op, body, sums, "sums[{}] = {};") if sums else SumStatements()
    prologue = PROLOGUE + BITS if sums else PROLOGUE
    return prologue + LOOP.format(arguments=", ".join(arguments), **body._asdict(), **statements._asdict())


def sum_statements(op: Elemwise, body: LoopBody, sums: Sequence[SumPick], total: str) -> SumStatements:
    """Return the C statements that sum the bits of values that an in-place Elemwise reads or writes.

    Args:
        total: statement that stores a sum, with {} for its index, and for its value.
    """
    values = [
        body.written[pick.output] if pick.written else f"i{op.inplace_pattern[pick.output]}" for pick in sums
    ]
    names = [f"sum{index}" for index in range(len(sums))]
    return SumStatements(
        f"uint32_t {', '.join(f'{name} = 0' for name in names)};",
        f"reduction(+:{', '.join(names)})",
        " ".join(f"{name} += bits({value});" for name, value in zip(names, values, strict=True)),
        " ".join(total.format(index, name) for index, name in enumerate(names)),
    )


def loop_body(scalar_op: ScalarOp, indices: Sequence[str], dtypes: Sequence[str], output_index: str) -> LoopBody:
    """Return the C statements that compute one element of a formula.

    Args:
        indices: C index expression of each input in its array (in0, in1, …); without j its load is invariant.
        dtypes: dtype of each input.
        output_index: C index expression of the outputs in out0, out1, …
    """
    invariant: list[str] = []
    loads: list[str] = []
    for n, (index, dtype) in enumerate(zip(indices, dtypes, strict=True)):
        (loads if "j" in index else invariant).append(f"const npy_{dtype} i{n} = in{n}[{index}];")
    code, results = _code(_formula(scalar_op, dtypes))
    stores = [f"out{n}[{output_index}] = {result};" for n, result in enumerate(results)]
    joined = [("\n" + 16 * " ").join(lines) for lines in (invariant, loads, code, stores)]
    return LoopBody(joined[0], joined[1], joined[2], joined[3], results)


def _code(formula: Formula) -> tuple[list[str], list[str]]:
    """Return the C statements of the steps, and the names of the outputs. The inputs are named i0, i1, …"""
    names = {variable: f"i{n}" for n, variable in enumerate(formula.inputs)}
    lines = []
    for step in formula.steps:
        for variable in step.inputs:
            if isinstance(variable, Constant):
                names[variable] = f"((npy_{variable.type.dtype}){variable.type.c_literal(variable.data)})"
        for variable in step.outputs:
            names[variable] = f"t{len(names)}"
            lines.append(f"npy_{variable.type.dtype} {names[variable]};")
        operands = [names[variable] for variable in step.inputs]
        results = [names[variable] for variable in step.outputs]
        number = len(names)
        lines.append(step.op.c_code(step, f"step{number}", operands, results, {"fail": "", "id": str(number)}))
    return lines, [names[variable] for variable in formula.outputs]


def exceeds_ufunc(scalar_op: ScalarOp | None, inputs: Sequence[Variable]) -> bool:
    """Return True if a node adds or multiplies more than two inputs; no ufunc does, so NumPy would loop in Python."""
    return isinstance(scalar_op, ps.Add | ps.Mul) and len(inputs) > 2


def split_into_ufuncs(node: Apply) -> list[Variable]:
    """Split a fused node, or a node of many inputs, into nodes of one NumPy call each; return the new outputs."""
    formula = _formula(node.op.scalar_op, [variable.type.dtype for variable in node.inputs])
    values = dict(zip(formula.inputs, node.inputs, strict=True))
    for step in formula.steps:
        for variable in step.inputs:
            if isinstance(variable, Constant):
                values[variable] = pt.constant(variable.data, dtype=variable.type.dtype)
        operands = [values[variable] for variable in step.inputs]
        while exceeds_ufunc(step.op, operands):
            operands[:2] = [Elemwise(step.op)(*operands[:2])]
        values.update(zip(step.outputs, Elemwise(step.op)(*operands, return_list=True), strict=True))
    return [values[variable] for variable in formula.outputs]
