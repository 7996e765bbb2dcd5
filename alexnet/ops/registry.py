"""Which function computes an Op on which backend. The decorators are the extension points of this package.

The kernels and lowerings of this package register themselves by being modules in ops/kernels and ops/lowerings; those
for Ops that PyTensor defines are in backends/cpu/kernels and backends/jax/lowerings. An Op of another package registers
its own with the same decorators:

    @cpu_kernel(MyOp)
    def my_kernel(op, node):
        loop = compiler.function(Path(__file__).with_suffix(".c"), "my_loop", "aan")

        def run(x):
            y = np.empty_like(x)
            loop(np.ascontiguousarray(x), y, x.size)
            return (y,)

        return run

    @jax_lowering(MyOp)
    def my_lowering(op, node):
        import jax.numpy as jnp          # here, because the other backends must work without jax

        return lambda x: jnp.square(x)

An Op without a kernel is computed by its NumPy `perform`; an Op without a lowering cannot be used on the JAX backend.
"""

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

Run = Callable[..., Sequence[np.ndarray]]        # input arrays of a node -> its outputs
Kernel = Callable[[Any, Apply], Run | None]      # Any: the class of Op for which it is registered
Lowering = Callable[..., Callable[..., Any]]     # (op, node) -> function of JAX arrays

_with_float64: set[Kernel] = set()
_lowerings: dict[type[Op], tuple[Lowering, bool]] = {}           # not yet passed to PyTensor


@singledispatch
def _kernel(op: Op, node: Apply) -> Run | None:
    return None                                  # an Op without a registered kernel


def cpu_kernel(*op_types: type[Op], float64: bool = False) -> Callable[[Kernel], Kernel]:
    """Register a function (op, node) -> run as the kernel of one or several classes of Ops on the CPU backend.

    run takes the input arrays of the node and returns a sequence of its outputs. Everything that is known before the
    first call (geometry, the compiled function) is bound once, outside run. Inputs may be strided, and run must not
    write to them unless the Op is in place. The kernel may return None instead of run: then NumPy computes the node.

    Args:
        float64: the kernel also computes nodes with float64 inputs or outputs; otherwise they never reach it.
    """

    def register(kernel: Kernel) -> Kernel:
        for op_type in op_types:
            _kernel.register(op_type, kernel)
        if float64:
            _with_float64.add(kernel)
        return kernel

    return register


def kernel_of(op: Op, node: Apply) -> Run | None:
    """Return the function that computes a node on the CPU backend, or None if NumPy should compute it."""
    dtypes = {getattr(variable.type, "dtype", None) for variable in node.inputs + node.outputs}
    if "float64" in dtypes and _kernel.dispatch(type(op)) not in _with_float64:
        return None
    return _kernel(op, node)


def jax_lowering(*op_types: type[Op], with_precision: bool = False) -> Callable[[Lowering], Lowering]:
    """Register a function (op, node) -> function of JAX arrays as the lowering of one or several classes of Ops.

    The lowering is called when a graph is compiled for the JAX backend, so only it needs to import jax.

    Args:
        with_precision: call it with (op, node, precision), the requested precision of products, a key of
            alexnet.ops.lowerings.precision.PRECISIONS.
    """

    def register(lowering: Lowering) -> Lowering:
        for op_type in op_types:
            _lowerings[op_type] = lowering, with_precision
        return lowering

    return register


def pass_lowerings(register: Callable[[type[Op], Callable[..., Any]], object]) -> None:
    """Pass the lowerings registered since the last call to PyTensor's `jax_funcify.register`."""
    while _lowerings:
        op_type, (lowering, with_precision) = _lowerings.popitem()
        register(op_type, _adapted(lowering, with_precision))


def _adapted(lowering: Lowering, with_precision: bool) -> Callable[..., Any]:
    """Return a lowering with the signature that PyTensor calls."""

    def funcify(op: Op, node: Apply = None, precision: str = "float32", **_: object) -> Callable[..., Any]:
        function = lowering(op, node, precision) if with_precision else lowering(op, node)
        dtypes = [getattr(variable.type, "dtype", "") for variable in node.inputs]

        def run(*arrays: Any) -> Any:
            return function(*map(_of_dtype, arrays, dtypes))

        return run

    return funcify


def _of_dtype(array: Any, dtype: str) -> Any:
    """Return a JAX array of floats in the dtype of its variable; JAX mode widens some. A Python number is unchanged."""
    widened = dtype.startswith("float") and getattr(array, "dtype", dtype) != dtype
    return array.astype(dtype) if widened else array
