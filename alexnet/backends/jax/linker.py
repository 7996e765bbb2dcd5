"""The PyTensor mode of the JAX backend and its linker: state stays on the device and is donated when updated.

A graph becomes one function of JAX arrays. XLA compiles it at the first call with new shapes. The values of shared
variables are moved to the device once. A call donates the buffers of the variables that it updates, so the new value
replaces the old one in memory, and only one copy of parameters and velocities exists.

Integers in the graph keep PyTensor's 64 bits, which counters and seeds need; the floats of the networks are float32.
Products are never computed at less than the requested precision; on a GPU the JAX default is TF32.
"""

import os
from functools import cache

import jax
import numpy as np
from pytensor.compile.mode import Mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.link.jax.linker import JAXLinker
from pytensor.tensor.type import TensorType

from alexnet.backends.jax import average_pool, basic, convolution, crop, dropout, lrn, max_pool
from alexnet.backends.jax.convolution import PRECISIONS
from alexnet.config.schema import ConfigError
from alexnet.native.compiler import cache_folder

LOWERINGS = average_pool, basic, convolution, crop, dropout, lrn, max_pool             # importing them registers them
LEFT_OUT = "fusion", "local_merge_switch_same_cond"              # XLA fuses; may not terminate where branches rejoin
NO_CUDA = 'backend jax sees no GPU for device {}: pip install "jax[cuda13]", or set backend=cpu (JAX: {})'


def jax_mode(precision="float32", device="cpu"):
    """Return the mode for a precision ("float32", "tf32", "bfloat16") and a device ("cpu", "cuda0" …).

    Raises:
        ValueError: unknown precision.
        ConfigError: JAX does not find the device.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    query = RewriteDatabaseQuery(include=["fast_run", "jax"], exclude=LEFT_OUT)
    return Mode(DeviceLinker(precision, device_of(device)), query)


@cache
def device_of(name):
    """Return the JAX device of a name; "cpu" never initialises a GPU. Raise ConfigError if there is no such device."""
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return jax.devices("cpu")[0]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")     # leave GPU memory for PyCUDA's buffers
    try:
        devices = {f"cuda{device.local_hardware_id}": device for device in jax.local_devices(backend="cuda")}
    except RuntimeError as error:
        raise ConfigError(NO_CUDA.format(name, str(error).splitlines()[0])) from error
    if name not in devices:
        raise ConfigError(f"device must be one of {', '.join(devices)}, which JAX sees, got {name}")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(cache_folder() / "xla"))
    return devices[name]


class DeviceLinker(JAXLinker):
    """PyTensor's JAX linker, with the state on one device and donation of updated buffers.

    A compiled function takes NumPy or JAX arrays. It returns JAX arrays asynchronously: their computation may still be
    running.
    """

    def __init__(self, precision, device):
        super().__init__()
        self.precision, self.device = precision, device

    def fgraph_convert(self, fgraph, **storages):
        """Return the graph as a function of its inputs; including the storages would keep a copy of all parameters."""
        with jax.enable_x64(True), jax.default_device(self.device):         # places the constants
            return jax_funcify(fgraph, precision=self.precision)

    def jit_compile(self, fn):
        return DeviceFunction(fn, self.fgraph, self.precision, self.device)


class DeviceFunction:
    """A function fn (graph inputs -> outputs), compiled for a device; donates the inputs that the graph updates.

    jitted  the jax.jit function (old values, other inputs) -> (new values, other outputs); old and new values have the
            same order
    """

    def __init__(self, fn, fgraph, precision, device):
        self.fn, self.inputs, self.outputs, self.device = fn, fgraph.inputs, fgraph.outputs, device
        self.precision = PRECISIONS[precision].name.lower()
        updates = sorted((fgraph.update_mapping or {}).items())
        self.new, self.old = [output for output, _ in updates], [place for _, place in updates]
        self.others = [place for place in range(len(fgraph.inputs)) if place not in self.old]
        self.results = [place for place in range(len(fgraph.outputs)) if place not in self.new]
        self.checks = list(crop.checks_on_host(fgraph))
        for variable in self.inputs:
            if isinstance(variable, SharedVariable):
                variable.container.type = DeviceTensorType(variable.type, device)
        self.jitted = jax.jit(self.step, donate_argnums=0)

    def step(self, old, others):
        values = dict(zip([*self.old, *self.others], [*old, *others], strict=True))
        with jax.default_matmul_precision(self.precision):
            outputs = self.fn(*(values[place] for place in range(len(values))))
        typed = [
            jax.numpy.asarray(value, variable.type.dtype)
            for value, variable in zip(outputs, self.outputs, strict=True)
        ]
        return [typed[place] for place in self.new], [typed[place] for place in self.results]

    def __call__(self, *values):
        for check in self.checks:
            check(values)
        with jax.enable_x64(True), jax.default_device(self.device):
            new, results = self.jitted(*self.arguments(values))
        outputs = dict(zip([*self.new, *self.results], [*new, *results], strict=True))
        return [outputs[place] for place in range(len(outputs))]

    def lower(self, *values):
        """Return the jax.stages.Lowered of a call with these values, before XLA compiles it."""
        with jax.enable_x64(True), jax.default_device(self.device):
            return self.jitted.lower(*self.arguments(values))

    def prepare(self, batch):
        """Compile with XLA now, with `batch` for each unknown length; later calls reuse the result."""
        self.lower(*(example(variable, batch) for variable in self.inputs)).compile()

    def arguments(self, values):
        values = [taken(variable, value, self.device) for variable, value in zip(self.inputs, values, strict=True)]
        return [values[place] for place in self.old], [values[place] for place in self.others]


def example(variable, batch):
    """Return an example value of an input: the value of a shared variable, or zeros."""
    if isinstance(variable, SharedVariable):
        return variable.get_value(borrow=True)
    return np.zeros([batch if n is None else n for n in variable.type.shape], variable.type.dtype)


def taken(variable, value, device):
    """Return the value of an input for the compiled function; moves shared variables and images to the device.

    Small host arrays stay on the host, because passing them with the XLA call is faster.

    Raises:
        TypeError: the value does not have the type of the variable.
    """
    if isinstance(variable, SharedVariable):
        if not isinstance(value, jax.Array):
            variable.set_value(value, borrow=True)
        return variable.get_value(borrow=True)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return variable.type.filter(value)
    if not fits(variable.type, value):
        wanted = f"{variable.type.dtype} of shape {shown(variable.type.shape)}"
        raise TypeError(f"{variable.name} must be {wanted}, got {value.dtype} of shape {shown(value.shape)}")
    return jax.device_put(value, device) if value.ndim == 4 else value


def fits(tensor_type, array):
    if (array.dtype, array.ndim) != (tensor_type.dtype, tensor_type.ndim):
        return False
    return all(n in (None, m) for n, m in zip(tensor_type.shape, array.shape, strict=True))


def shown(shape):
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


class DeviceTensorType(TensorType):
    """The type of a shared variable's container: arrays on a device; set_value keeps device arrays in place."""

    def __init__(self, tensor_type, device):
        super().__init__(tensor_type.dtype, shape=tensor_type.shape)
        self.device = device

    def filter(self, value, strict=False, allow_downcast=None):
        if not (isinstance(value, jax.Array) and fits(self, value)):
            value = super().filter(value, strict, allow_downcast)
        with jax.enable_x64(True):
            return jax.device_put(value, self.device)
