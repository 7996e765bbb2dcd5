"""Engines: each turns the Ops of a graph into the code of one kind of machine.

cpu        C kernels, compiled at first use for this machine's processor; without a compiler, the references
jax        one lowering for each Op, compiled by XLA for a GPU, or for the CPU in tests
reference  the Ops' own NumPy code, float32 or float64, for tests
"""

import importlib.util
import pkgutil

from alexnet.config import ConfigError
from alexnet.dispatch.cpu import cpu_mode, reference_mode

HOST_ENGINES = {"cpu": cpu_mode, "reference": reference_mode}          # arrays are NumPy's, updated in place
ENGINES = (*HOST_ENGINES, "jax")
JAX_MODE = "alexnet.dispatch.jax:jax_mode"                             # by name: jax is there for those who use it
NO_JAX = 'engine jax needs jax, which is not installed: pip install "jax[cuda13]" for a GPU, pip install jax for a CPU'


def prepare(function, batch):
    """Have a function of engine jax compiled by XLA now, for its open lengths to be those of a batch."""
    function.vm.jit_fn.prepare(batch)


def mode_of(engine, precision="float32", device="cpu"):
    """Return the PyTensor mode of an engine's name, and for jax, of a precision and a device ("cpu", "cuda0" …).

    Raises ValueError for an unknown engine, ConfigError for what this machine or this engine does not have.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "jax":
        if importlib.util.find_spec("jax") is None:
            raise ConfigError(NO_JAX)
        return pkgutil.resolve_name(JAX_MODE)(precision, device)
    if precision != "float32":
        raise ConfigError(f"precision {precision} needs engine=jax; engine {engine} computes float32 alone")
    return HOST_ENGINES[engine]()
