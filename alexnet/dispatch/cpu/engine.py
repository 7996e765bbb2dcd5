"""The modes of this engine, and the last rewrite of a graph: nodes that have a kernel get it.

What has no kernel is small, and NumPy computes it: nothing is compiled but the kernels, a dozen files for any network,
where PyTensor's C linker would compile one for each kind of node.
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

from alexnet.dispatch.cpu import (
    average_pool,
    build,
    convolution,
    crop,
    dense,
    dropout,
    elemwise,
    join,
    lrn,
    max_pool,
    reduce,
    update,
)
from alexnet.dispatch.cpu.registry import kernel

KERNELS = (                                      # imported: registered
    average_pool, convolution, crop, dense, dropout, elemwise, join, lrn, max_pool, reduce, update,
)  # fmt: skip
AFTER_STABILISING = 1.9                          # where whole softmaxes are recognised; fusion comes later
AFTER_ALL_OTHERS = 1000                          # PyTensor's own rewrites stand at positions below 200
LEFT_OUT = "BlasOpt", "local_merge_switch_same_cond"     # calls BLAS from C; never ends where branches meet again


class CpuKernel(Op):
    """An Op computed by run(*inputs) -> outputs, in place where the Op is."""

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
    """Replace each float32 node that has a kernel by CpuKernel, and make single NumPy calls of those that have none."""

    def apply(self, fgraph):
        update.fuse(fgraph)
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
    """C kernels, and NumPy for the small rest; without a C compiler the references, slow and right, and one warning."""
    if not build.compiler_available():
        warn_of_references()
        return reference_mode()
    return _numpy_mode().register((UseKernels(), AFTER_ALL_OTHERS))


def reference_mode():
    """Every Op by its own NumPy code; unfused, since NumPy would run a fused Op element by element."""
    return _numpy_mode().excluding("fusion")


def _numpy_mode():
    """PyTensor's virtual machine without its compiler, and without the rewrites that are LEFT_OUT."""
    query = RewriteDatabaseQuery(include=["fast_run"], exclude=LEFT_OUT)
    return Mode(VMLinker(use_cloop=False, c_thunks=False), query).register((InlineGraphs(), AFTER_STABILISING))


@cache
def warn_of_references():
    """Say once per process that there is no compiler."""
    warnings.warn(build.NO_COMPILER, RuntimeWarning, stacklevel=3)
