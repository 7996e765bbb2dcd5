"""Graph rewrites that make the Ops work in every mode of PyTensor. Importing this module registers them.

cancel_conversions  moves conversions from c01b to NCHW behind elementwise Ops, sums and concatenations, where they meet
                    conversions to c01b and cancel. A chain of NCHW functions then converts at its ends only.
use_numba_kernels   registers the C kernels with PyTensor's Numba dispatch
use_jax_lowerings   registers the lowerings with PyTensor's JAX dispatch

The last two change no graph. They are rewrites because each is applied in one mode only, so Numba and JAX are imported
only when a function is compiled for them.
"""

from collections.abc import Callable

from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.tensor.basic import Join, join
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise

from alexnet.ops.functional import TO_C01B, TO_NCHW

BEFORE_FUSION = 48                               # after the rewrites that move a DimShuffle before elementwise Ops
FIRST = -10


class CancelConversions(GraphRewriter):
    """Move conversions to NCHW towards the outputs, and remove those that meet a conversion to c01b."""

    def apply(self, fgraph: FunctionGraph) -> None:
        for node in fgraph.toposort():
            if node in fgraph.apply_nodes and (new := converted_later(node)) is not None:
                fgraph.replace(node.outputs[0], new, reason="cancel_conversions")


def converted_later(node: Apply) -> Variable | None:
    """Return the output of a node computed in c01b and then converted, or None if that does not apply."""
    inner = [before_conversion(variable) for variable in node.inputs]
    if len(node.outputs) != 1 or all(own is None for own in inner):
        return None
    if isinstance(node.op, DimShuffle):
        return inner[0] if node.op.new_order == TO_C01B else None
    if isinstance(node.op, Elemwise) and not node.op.inplace_pattern:
        inputs = [
            in_c01b(variable) if own is None else own for own, variable in zip(inner, node.inputs, strict=True)
        ]
        return in_nchw(node.op(*inputs))
    if isinstance(node.op, CAReduce):
        return reduced(node, inner[0])
    if isinstance(node.op, Join):
        return joined(node)
    return None


def before_conversion(variable: Variable) -> Variable | None:
    """Return the c01b variable of which a variable is the conversion to NCHW, or None."""
    node = variable.owner
    return node.inputs[0] if node and isinstance(node.op, DimShuffle) and node.op.new_order == TO_NCHW else None


def in_nchw(variable: Variable) -> Variable:
    return variable.dimshuffle(TO_NCHW)


def in_c01b(variable: Variable) -> Variable:
    """Return an NCHW variable in c01b, by one DimShuffle at most."""
    node = variable.owner
    if not (node and isinstance(node.op, DimShuffle)):
        return variable.dimshuffle(TO_C01B)
    (source,) = node.inputs
    order = [node.op.new_order[axis] for axis in TO_C01B]
    return source if order == list(range(source.type.ndim)) else source.dimshuffle(order)


def reduced(node: Apply, inner: Variable) -> Variable | None:
    """Return a reduction over axes of NCHW as one over axes of c01b, if at most one axis remains."""
    axes = range(4) if node.op.axis is None else node.op.axis
    if len(axes) < 3:
        return None
    return node.op.clone(axis=tuple(sorted(TO_NCHW[axis] for axis in axes)))(inner)


def joined(node: Apply) -> Variable | None:
    """Return a concatenation of NCHW images as one of c01b images, if all of them are converted."""
    constant_axis = getattr(node.op, "axis", None)       # PyTensor 3.0 has no Join.axis: the axis is the first input
    axis, images = (constant_axis, node.inputs) if constant_axis is not None else (node.inputs[0], node.inputs[1:])
    number = getattr(axis, "data", axis)
    inner = [before_conversion(variable) for variable in images]
    if isinstance(number, Variable) or any(own is None for own in inner):
        return None
    return in_nchw(join(TO_NCHW[int(number)], *inner))


class Register(GraphRewriter):
    """Call `register` before a function is compiled in a mode. The graph is not changed."""

    def __init__(self, register: Callable[[], None]) -> None:
        self.register = register

    def apply(self, fgraph: FunctionGraph) -> None:
        self.register()


def register_numba_kernels() -> None:
    """Register the C kernels with PyTensor's Numba dispatch."""
    from alexnet.ops import numba_kernels  # here, because Numba imports in 0.5 s

    numba_kernels.register()


def register_jax_lowerings() -> None:
    """Register the lowerings with PyTensor's JAX dispatch."""
    from alexnet.ops import lowerings  # here, because JAX is optional and imports in 1 s

    lowerings.register()


optdb.register("alexnet_cancel_conversions", CancelConversions(), "fast_run", position=BEFORE_FUSION)
optdb.register("alexnet_numba_kernels", Register(register_numba_kernels), "numba", position=FIRST)
optdb.register("alexnet_jax_lowerings", Register(register_jax_lowerings), "jax", position=FIRST)
