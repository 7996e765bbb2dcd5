"""The mode of this engine, and its linker: state that stays on the device, donated where it is updated.

A graph becomes one function of JAX arrays, which XLA compiles when it is first called with arrays of new shapes.  The
values of shared variables are moved to the device once; those that a call updates are donated to it, so that the
new value is written where the old one lay, and parameters and velocities exist once.

Integers keep PyTensor's 64 bits within the graph, which counters and seeds need; the networks' floats are float32, and
no product is computed in less than the precision asked for: on a GPU, JAX by itself takes TF32.
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

from alexnet.config import ConfigError
from alexnet.dispatch.cpu.build import cache_folder
from alexnet.dispatch.jax import average_pool, basic, convolution, crop, dropout, lrn, max_pool
from alexnet.dispatch.jax.convolution import PRECISIONS

LOWERINGS = average_pool, basic, convolution, crop, dropout, lrn, max_pool             # imported: registered
LEFT_OUT = "fusion", "local_merge_switch_same_cond"              # XLA fuses; never ends where branches meet again
NO_CUDA = 'engine jax sees no GPU for device {}: pip install "jax[cuda13]", or say engine=cpu (JAX: {})'


def jax_mode(precision="float32", device="cpu"):
    """The mode of a precision ("float32", "tf32", "bfloat16") and a device ("cpu", "cuda0" …).

    Raises ValueError for another precision, ConfigError for a device that is not there.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    query = RewriteDatabaseQuery(include=["fast_run", "jax"], exclude=LEFT_OUT)
    return Mode(DeviceLinker(precision, device_of(device)), query)


@cache
def device_of(name):
    """The JAX device of a name; "cpu" never wakes a GPU.  Raises ConfigError for one that is not there."""
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return jax.devices("cpu")[0]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")     # PyCUDA's buffers need memory beside JAX's
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
    """PyTensor's JAX linker, with the state on one device and donated where it is updated.

    A compiled function takes NumPy's or JAX's arrays; it returns JAX's, which may still be computed when it returns.
    """

    def __init__(self, precision, device):
        super().__init__()
        self.precision, self.device = precision, device

    def fgraph_convert(self, fgraph, **storages):
        """The graph as a function of its inputs; the storages stay out, or it would hold a copy of all parameters."""
        with jax.enable_x64(True), jax.default_device(self.device):         # constants go there now
            return jax_funcify(fgraph, precision=self.precision)

    def jit_compile(self, fn):
        return DeviceFunction(fn, self.fgraph, self.precision, self.device)


class DeviceFunction:
    """fn (inputs of the graph -> outputs), compiled for a device, donating the inputs that the graph updates.

    jitted  (old values, other inputs) -> (new values, other outputs): JAX's function, the values in the same order
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
        """What JAX makes of a call with these values, before XLA compiles it: jax.stages.Lowered."""
        with jax.enable_x64(True), jax.default_device(self.device):
            return self.jitted.lower(*self.arguments(values))

    def prepare(self, batch):
        """Have XLA compile now, for lengths of `batch` where the graph leaves them open; a later call finds that."""
        self.lower(*(example(variable, batch) for variable in self.inputs)).compile()

    def arguments(self, values):
        values = [taken(variable, value, self.device) for variable, value in zip(self.inputs, values, strict=True)]
        return [values[place] for place in self.old], [values[place] for place in self.others]


def example(variable, batch):
    """A value of an input: what a shared variable holds, or zeros."""
    if isinstance(variable, SharedVariable):
        return variable.get_value(borrow=True)
    return np.zeros([batch if n is None else n for n in variable.type.shape], variable.type.dtype)


def taken(variable, value, device):
    """The value of an input as the compiled function takes it: shared variables' and images are moved to the device.

    Small arrays that lie on the host stay there: XLA's call takes them along faster.
    Raises TypeError where the value is not of the variable's type.
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
    """What a shared variable's container takes its values for: arrays on a device, which set_value leaves there."""

    def __init__(self, tensor_type, device):
        super().__init__(tensor_type.dtype, shape=tensor_type.shape)
        self.device = device

    def filter(self, value, strict=False, allow_downcast=None):
        if not (isinstance(value, jax.Array) and fits(self, value)):
            value = super().filter(value, strict, allow_downcast)
        with jax.enable_x64(True):
            return jax.device_put(value, self.device)
