"""Compute backends: each compiles the Ops of a PyTensor graph for one kind of machine.

cpu       C kernels, compiled at first use for the host processor; NumPy if no C compiler is installed
numpy     the NumPy references of the Ops, float32 or float64: slow, for tests
jax       one lowering per Op, compiled by XLA for a GPU, or for the CPU in tests
registry  which function computes an Op on which backend; an Op defined elsewhere brings its own: see cpu_kernel and
          jax_lowering
"""

import importlib.util
from collections.abc import Callable

import pytensor
from pytensor.compile.mode import Mode

from alexnet.backends.cpu import cpu_mode, numpy_mode
from alexnet.config.schema import ConfigError
from alexnet.ops.registry import cpu_kernel, jax_lowering

__all__ = ["BACKENDS", "HOST_BACKENDS", "cpu_kernel", "jax_lowering", "mode_of", "prepare"]

# Backends whose arrays are NumPy's, updated in place -> their PyTensor mode
HOST_BACKENDS: dict[str, Callable[[], Mode]] = {"cpu": cpu_mode, "numpy": numpy_mode}
BACKENDS: tuple[str, ...] = (*HOST_BACKENDS, "jax")


def mode_of(backend: str, precision: str = "float32", device: str = "cpu") -> Mode:
    """Return the PyTensor mode of a backend.

    Args:
        backend: name of the backend, one of BACKENDS.
        precision: "float32"; the jax backend also supports "tf32" and "bfloat16".
        device: "cpu", "cuda0" …; used by the jax backend only.

    Raises:
        ValueError: unknown backend.
        ConfigError: JAX is not installed, or the backend does not support the precision or the device.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "jax":
        return _jax_mode(precision, device)
    if precision != "float32":
        raise ConfigError(f"precision {precision} needs backend=jax; backend {backend} computes in float32 only")
    return HOST_BACKENDS[backend]()


def prepare(function: pytensor.compile.Function, batch: int) -> None:
    """Compile a function of the jax backend with XLA now, with `batch` for each unknown length."""
    function.vm.jit_fn.prepare(batch)


def _jax_mode(precision: str, device: str) -> Mode:
    if importlib.util.find_spec("jax") is None:
        from alexnet.native.packages import install  # only an error needs it

        raise ConfigError(
            f"backend jax needs jax, which is not installed: {install('cuda')} for a GPU, pip install jax for a CPU"
        )
    from alexnet.backends.jax import jax_mode  # here, because jax is optional and its import takes a second

    return jax_mode(precision, device)
