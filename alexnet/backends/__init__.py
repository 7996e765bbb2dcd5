"""Compute backends: each compiles the Ops of a PyTensor graph for one kind of machine.

cpu        C kernels, compiled at first use for the host processor; NumPy if no C compiler is installed
jax        one lowering per Op, compiled by XLA for a GPU, or for the CPU in tests
reference  the NumPy implementations of the Ops, float32 or float64, for tests
"""

import importlib.util
import pkgutil

from alexnet.backends.cpu import cpu_mode, numpy_mode
from alexnet.config.schema import ConfigError

HOST_BACKENDS = {"cpu": cpu_mode, "numpy": numpy_mode}          # arrays are NumPy's, updated in place
BACKENDS = (*HOST_BACKENDS, "jax")
JAX_MODE = "alexnet.backends.jax:jax_mode"                             # a string, so that jax is imported only if used
NO_JAX = 'backend jax needs jax, which is not installed: pip install "jax[cuda13]" for a GPU, pip install jax for a CPU'


def prepare(function, batch):
    """Compile a function of the jax backend with XLA now, with `batch` for each unknown length."""
    function.vm.jit_fn.prepare(batch)


def mode_of(backend, precision="float32", device="cpu"):
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
        if importlib.util.find_spec("jax") is None:
            raise ConfigError(NO_JAX)
        return pkgutil.resolve_name(JAX_MODE)(precision, device)
    if precision != "float32":
        raise ConfigError(f"precision {precision} needs backend=jax; backend {backend} computes in float32 only")
    return HOST_BACKENDS[backend]()
