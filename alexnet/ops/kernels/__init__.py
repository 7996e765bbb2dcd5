"""C kernels of the Ops. Each module in this folder registers its kernels; the loops are in the .c files.

convolution   direct (convolution.c, filter_gradient.c) or with Winograd transforms (winograd*.c)
max_pool      average_pool, lrn, crop, dropout: one .c file of the same name each
"""

import warnings
from functools import cache
from weakref import WeakKeyDictionary

from pytensor.graph.basic import Apply

from alexnet.config.registry import import_modules
from alexnet.native import compiler
from alexnet.ops.base import ShapedOp
from alexnet.ops.registry import Run, kernel_of

import_modules(__name__, __path__)

_runs: WeakKeyDictionary[Apply, Run] = WeakKeyDictionary()


def run_of(op: ShapedOp, node: Apply) -> Run:
    """Return the function that computes a node: its C kernel, or the NumPy reference if there is no kernel for it.

    Without a C compiler, warn once per process.
    """
    run = _runs.get(node)
    if run is None:
        run = _runs[node] = _kernel(op, node) or op.reference
    return run


def _kernel(op: ShapedOp, node: Apply) -> Run | None:
    if not compiler.compiler_available():
        warn_no_compiler()
        return None
    return kernel_of(op, node)


@cache
def warn_no_compiler() -> None:
    """Warn once per process that no C compiler was found."""
    warnings.warn(compiler.NO_COMPILER, RuntimeWarning, stacklevel=3)
