"""The PyTensor modes of the CPU backend, and the last graph rewrite, which replaces nodes by kernels.

Nodes without a kernel are small and are computed by NumPy. Only the kernels are compiled, about a dozen files for any
network; PyTensor's C linker would compile one file for each kind of node.
"""

import warnings
from functools import cache

from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.vm import VMLinker
from pytensor.scalar import Composite
from pytensor.tensor.rewriting.ofg import inline_ofg_node

from alexnet.backends.cpu import elemwise, fused_update
from alexnet.backends.cpu.kernels import (
    average_pool,
    convolution,
    crop,
    dot,
    dropout,
    join,
    lrn,
    max_pool,
    reduce,
)
from alexnet.backends.cpu.registry import kernel
from alexnet.native import compiler

KERNELS = (                                      # importing them registers their kernels
    average_pool, convolution, crop, dot, dropout, elemwise, join, lrn, max_pool, reduce, fused_update,
)
AFTER_STABILISING = 1.9                          # after the rewrites that recognise softmax, before fusion
AFTER_ALL_OTHERS = 1000                          # PyTensor's rewrites have positions below 200
LEFT_OUT = "BlasOpt", "local_merge_switch_same_cond"     # calls BLAS from C; may not terminate where branches rejoin


class CpuKernel(Op):
    """An Op computed by run(*inputs) -> outputs; in place if the original Op is in place."""

    __props__ = ("op",)

    def __init__(self, op, run):
        self.op, self.run = op, run
        self.destroy_map, self.view_map = dict(op.destroy_map), dict(op.view_map)

    def make_node(self, *inputs):
        return Apply(self, inputs, [output.type() for output in self.op.make_node(*inputs).outputs])

    def perform(self, node, inputs, outputs):
        for storage, value in zip(outputs, self.run(*inputs), strict=True):
            storage[0] = value

    def __str__(self):
        return f"CpuKernel({self.op})"


class InlineGraphs(GraphRewriter):
    """Replace each `OpFromGraph` node, such as PyTensor's softmax, by the nodes of its inner graph.

    Otherwise PyTensor compiles the inner graph with Numba at the first call.
    """

    def apply(self, fgraph):
        while nodes := [node for node in fgraph.toposort() if isinstance(node.op, OpFromGraph)]:
            for node in nodes:
                outputs = inline_ofg_node(node)
                fgraph.replace_all(list(zip(node.outputs, outputs, strict=True)), reason="inline_graphs")


class UseKernels(GraphRewriter):
    """Replace nodes that have a kernel by CpuKernel; split fused or many-input nodes without one into NumPy calls.

    Nodes with float64 inputs or outputs get no kernel.
    """

    def apply(self, fgraph):
        fused_update.fuse(fgraph)
        for node in fgraph.toposort():
            dtypes = {getattr(variable.type, "dtype", None) for variable in node.inputs + node.outputs}
            formula = getattr(node.op, "scalar_op", None)
            run = None if "float64" in dtypes else kernel(node.op, node)
            if run is not None:
                outputs = CpuKernel(node.op, run).make_node(*node.inputs).outputs
            elif isinstance(formula, Composite) or elemwise.many(formula, node.inputs):
                outputs = elemwise.unfused(node)
            else:
                continue
            fgraph.replace_all(list(zip(node.outputs, outputs, strict=True)), reason="cpu kernel")


def cpu_mode():
    """Return the mode with C kernels; without a C compiler warn once and return the slow `numpy_mode`."""
    if not compiler.compiler_available():
        warn_no_compiler()
        return numpy_mode()
    return _base_mode().register((UseKernels(), AFTER_ALL_OTHERS))


def numpy_mode():
    """Return the mode that computes each Op with NumPy; no fusion: NumPy would run fused Ops element by element."""
    return _base_mode().excluding("fusion")


def _base_mode():
    """Return a mode of the PyTensor VM without C compilation and without the rewrites in LEFT_OUT."""
    query = RewriteDatabaseQuery(include=["fast_run"], exclude=LEFT_OUT)
    return Mode(VMLinker(use_cloop=False, c_thunks=False), query).register((InlineGraphs(), AFTER_STABILISING))


@cache
def warn_no_compiler():
    """Warn once per process that no C compiler was found."""
    warnings.warn(compiler.NO_COMPILER, RuntimeWarning, stacklevel=3)
