"""The PyTensor modes of the CPU backend, and the last graph rewrite, which replaces nodes by kernels.

Nodes without a kernel are small and are computed by NumPy. Only the kernels are compiled, about a dozen files for any
network; PyTensor's C linker would compile one file for each kind of node.
"""

from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.vm import VMLinker
from pytensor.scalar import Composite
from pytensor.tensor.rewriting.ofg import inline_ofg_node

from alexnet.backends.cpu.kernels import elemwise, fused_update, summed_update
from alexnet.backends.notify import notify_early
from alexnet.native import compiler
from alexnet.ops.base import Arrays, ShapedOp, Storages
from alexnet.ops.kernels import warn_no_compiler
from alexnet.ops.registry import Run, kernel_of

AFTER_STABILISING = 1.9                          # after the rewrites that recognise softmax, before fusion
AFTER_ALL_OTHERS = 1000                          # PyTensor's rewrites have positions below 200
EXCLUDED = "BlasOpt", "local_merge_switch_same_cond"     # calls BLAS from C; may not terminate where branches rejoin


class _Replacement(Op):
    """An Op computed by run(*inputs) -> outputs; in place if the original Op is in place."""

    __props__ = ("op",)

    def __init__(self, op: Op, run: Run) -> None:
        self.op = op
        self.run = run
        self.destroy_map = dict(op.destroy_map)
        self.view_map = dict(op.view_map)

    def make_node(self, *inputs: Variable) -> Apply:
        return Apply(self, inputs, [output.type() for output in self.op.make_node(*inputs).outputs])

    def perform(self, node: Apply, inputs: Arrays, outputs: Storages) -> None:
        for storage, value in zip(outputs, self.run(*inputs), strict=True):
            storage[0] = value

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.op})"

    @classmethod
    def replace(cls, fgraph: FunctionGraph, node: Apply, run: Run) -> None:
        """Replace a node by one that calls run."""
        outputs = cls(node.op, run).make_node(*node.inputs).outputs
        fgraph.replace_all(list(zip(node.outputs, outputs, strict=True)), reason=cls.__name__)


class CpuKernel(_Replacement):
    """An Op computed by its C kernel."""


class NumpyReference(_Replacement):
    """An Op of this package computed by its NumPy reference."""


class InlineGraphs(GraphRewriter):
    """Replace each `OpFromGraph` node, such as PyTensor's softmax, by the nodes of its inner graph.

    Otherwise PyTensor compiles the inner graph with Numba at the first call.
    """

    def apply(self, fgraph: FunctionGraph) -> None:
        while nodes := [node for node in fgraph.toposort() if isinstance(node.op, OpFromGraph)]:
            for node in nodes:
                outputs = inline_ofg_node(node)
                fgraph.replace_all(list(zip(node.outputs, outputs, strict=True)), reason="inline_graphs")


class UseKernels(GraphRewriter):
    """Replace nodes that have a kernel by CpuKernel; split fused or many-input nodes without one into NumPy calls.

    Nodes with float64 inputs or outputs get no kernel.
    """

    def apply(self, fgraph: FunctionGraph) -> None:
        fused_update.fuse(fgraph)
        summed_update.fuse(fgraph)
        for node in fgraph.toposort():
            scalar_op = getattr(node.op, "scalar_op", None)
            run = kernel_of(node.op, node)
            if run is not None:
                CpuKernel.replace(fgraph, node, run)
            elif isinstance(scalar_op, Composite) or elemwise.exceeds_ufunc(scalar_op, node.inputs):
                outputs = elemwise.split_into_ufuncs(node)
                fgraph.replace_all(list(zip(node.outputs, outputs, strict=True)), reason="split_into_ufuncs")


class UseReferences(GraphRewriter):
    """Compute the Ops of this package with their NumPy references instead of their C kernels."""

    def apply(self, fgraph: FunctionGraph) -> None:
        for node in fgraph.toposort():
            if isinstance(node.op, ShapedOp):
                NumpyReference.replace(fgraph, node, node.op.reference)


def cpu_mode() -> Mode:
    """Return the mode with C kernels; without a C compiler warn once and return the slow `numpy_mode`."""
    if not compiler.compiler_available():
        warn_no_compiler()
        return numpy_mode()
    return _base_mode().register((UseKernels(), AFTER_ALL_OTHERS))


def numpy_mode() -> Mode:
    """Return the mode that computes each Op with NumPy; no fusion: NumPy would run fused Ops element by element."""
    return _base_mode().excluding("fusion").register((UseReferences(), AFTER_ALL_OTHERS))


def _base_mode() -> Mode:
    """Return a mode of the PyTensor VM without C compilation and without the rewrites in EXCLUDED."""
    query = RewriteDatabaseQuery(include=["fast_run"], exclude=EXCLUDED)
    linker = VMLinker(use_cloop=False, c_thunks=False, schedule=notify_early)
    return Mode(linker, query).register((InlineGraphs(), AFTER_STABILISING))
