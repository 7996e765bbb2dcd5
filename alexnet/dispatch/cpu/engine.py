"""The modes of this engine, and the last rewrite of a graph: nodes that have a kernel get it."""

import warnings

import pytensor
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.vm import VMLinker

from alexnet.dispatch.cpu import build, convolve, crop, dense, dropout, lrn, max_pool, reduce
from alexnet.dispatch.cpu.registry import kernel

AFTER_ALL_OTHERS = 1000                          # PyTensor's own rewrites stand at positions below 200


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


class UseKernels(GraphRewriter):
    """Replace each float32 node that has a kernel by CpuKernel."""

    def apply(self, fgraph):
        for node in fgraph.toposort():
            if any(variable.type.dtype == "float64" for variable in node.inputs + node.outputs):
                continue
            run = kernel(node.op, node)
            if run is not None:
                outputs = CpuKernel(node.op, run).make_node(*node.inputs).outputs
                fgraph.replace_all(list(zip(node.outputs, outputs, strict=True)), reason="cpu kernel")


def cpu_mode():
    """C kernels and PyTensor's C linker; without a C compiler the references, slow and right, and one warning."""
    if not build.compiler_available():
        warnings.warn(build.NO_COMPILER, RuntimeWarning, stacklevel=2)
        return reference_mode()
    query = RewriteDatabaseQuery(include=["fast_run"]).excluding("BlasOpt")
    return Mode(VMLinker(use_cloop=True), query).register((UseKernels(), AFTER_ALL_OTHERS))


def reference_mode():
    """Every Op by its own NumPy code, nothing compiled; unfused, since a fused Op runs element by element there."""
    query = RewriteDatabaseQuery(include=["fast_run"]).excluding("fusion", "BlasOpt")
    return Mode(VMLinker(use_cloop=False, c_thunks=False), query)
