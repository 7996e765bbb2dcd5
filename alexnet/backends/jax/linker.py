"""The PyTensor mode of the JAX backend and its linker: state stays on the device and is donated when updated.

A graph becomes one function of JAX arrays. XLA compiles it at the first call with new shapes. The values of shared
variables are moved to the device once. A call donates the buffers of the variables that it updates, so the new value
replaces the old one in memory, and only one copy of parameters and velocities exists.

Integers in the graph keep PyTensor's 64 bits, which counters and seeds need; the floats of the networks are float32.
Products are never computed at less than the requested precision; on a GPU the JAX default is TF32.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import Array
from pytensor.compile.mode import Mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.link.jax.linker import JAXLinker
from pytensor.tensor.type import TensorType

from alexnet.backends.jax import lowerings
from alexnet.backends.jax.notifying import NotifyingFunction
from alexnet.backends.notify import notify_nodes
from alexnet.config.schema import ConfigError
from alexnet.native.compiler import cache_folder
from alexnet.native.packages import install
from alexnet.ops.lowerings import crop
from alexnet.ops.lowerings.precision import PRECISIONS

EXCLUDED = "fusion", "local_merge_switch_same_cond"              # XLA fuses; may not terminate where branches rejoin
Value: TypeAlias = Array | np.ndarray | np.generic                # of an input
NO_CUDA = "backend jax sees no GPU for device {}: {}, or set backend=cpu (JAX: {})"


def jax_mode(precision: str = "float32", device: str = "cpu") -> Mode:
    """Return the mode for a precision ("float32", "tf32", "bfloat16") and a device ("cpu", "cuda0" …).

    Raises:
        ValueError: unknown precision.
        ConfigError: JAX does not find the device.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    query = RewriteDatabaseQuery(include=["fast_run", "jax"], exclude=EXCLUDED)
    return Mode(DeviceLinker(precision, device_of(device)), query)


@cache
def device_of(name: str) -> jax.Device:
    """Return the JAX device of a name; "cpu" never initialises a GPU. Raise ConfigError if there is no such device."""
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return jax.devices("cpu")[0]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")     # leave GPU memory for PyCUDA's buffers
    try:
        devices = {f"cuda{device.local_hardware_id}": device for device in jax.local_devices(backend="cuda")}
    except RuntimeError as error:
        raise ConfigError(NO_CUDA.format(name, install("cuda"), str(error).splitlines()[0])) from error
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

    def __init__(self, precision: str, device: jax.Device) -> None:
        super().__init__()
        self.precision = precision
        self.device = device

    def fgraph_convert(self, fgraph: FunctionGraph, **storages: object) -> "DeviceFunction | NotifyingFunction":
        """Return the graph as a function of its inputs; including the storages would keep a copy of all parameters."""
        lowerings.register()
        convert = partial(DeviceFunction, precision=self.precision, device=self.device)
        return NotifyingFunction(fgraph, convert) if notify_nodes(fgraph) else convert(fgraph)

    def jit_compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return fn                                # it calls jax.jit itself


class DeviceFunction:
    """A graph as a function (inputs -> outputs), compiled for a device; donates the inputs that the graph updates.

    fn            the function (inputs -> outputs) that JAX traces
    old, others   positions of the updated variables, and of the other ones, among the inputs
    new, results  positions of the updated values, in the order of old, and of the other ones, among the outputs
    jitted        the jax.jit function (old values, other inputs) -> (new values, results)
    """

    def __init__(self, fgraph: FunctionGraph, precision: str, device: jax.Device) -> None:
        with jax.enable_x64(True), jax.default_device(device):              # places the constants
            self.fn: Callable[..., Any] = jax_funcify(fgraph, precision=precision)
        self.inputs = fgraph.inputs
        self.outputs = fgraph.outputs
        self.device = device
        self.precision = PRECISIONS[precision].name.lower()
        updates = sorted((fgraph.update_mapping or {}).items())
        self.old = [position for _, position in updates]
        self.new = [position for position, _ in updates]
        self.others = [position for position in range(len(fgraph.inputs)) if position not in self.old]
        self.results = [position for position in range(len(fgraph.outputs)) if position not in self.new]
        self.checks = list(crop.checks_on_host(fgraph))
        for variable in self.inputs:
            if isinstance(variable, SharedVariable):
                variable.container.type = DeviceTensorType(variable.type, device)
        self.jitted = jax.jit(self.step, donate_argnums=0)

    def step(self, old: Sequence[Array], others: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Return (new values, results): the function that JAX traces."""
        values = dict(zip([*self.old, *self.others], [*old, *others], strict=True))
        with jax.default_matmul_precision(self.precision):
            outputs = self.fn(*(values[position] for position in range(len(values))))
        typed = [
            jax.numpy.asarray(value, variable.type.dtype)
            for value, variable in zip(outputs, self.outputs, strict=True)
        ]
        return [typed[position] for position in self.new], [typed[position] for position in self.results]

    def __call__(self, *values: Value) -> list[Array]:
        for check in self.checks:
            check(values)
        with jax.enable_x64(True), jax.default_device(self.device):
            new, results = self.jitted(*self.arguments(values))
        outputs = dict(zip([*self.new, *self.results], [*new, *results], strict=True))
        return [outputs[position] for position in range(len(outputs))]

    def lower(self, *values: Value) -> jax.stages.Lowered:
        """Return the jax.stages.Lowered of a call with these values, before XLA compiles it."""
        with jax.enable_x64(True), jax.default_device(self.device):
            return self.jitted.lower(*self.arguments(values))

    def prepare(self, batch: int) -> None:
        """Compile with XLA now, with `batch` for each unknown length; later calls reuse the result."""
        self.lower(*(example(variable, batch) for variable in self.inputs)).compile()

    def arguments(self, values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """Return the arguments of jitted for the values of the inputs."""
        accepted = [accept(variable, value, self.device) for variable, value in zip(self.inputs, values, strict=True)]
        return [accepted[position] for position in self.old], [accepted[position] for position in self.others]


def example(variable: Variable, batch: int) -> Value:
    """Return an example value of an input: the value of a shared variable, or zeros."""
    if isinstance(variable, SharedVariable):
        return variable.get_value(borrow=True)
    return np.zeros([batch if n is None else n for n in variable.type.shape], variable.type.dtype)


def accept(variable: Variable, value: Value, device: jax.Device) -> Value:
    """Return the value of an input for the compiled function; moves shared variables and images to the device.

    Small host arrays stay on the host, because passing them with the XLA call is faster.

    Raises:
        TypeError: the value does not have the type of the variable.
    """
    if isinstance(variable, SharedVariable):
        if not isinstance(value, Array):
            variable.set_value(value, borrow=True)
        return variable.get_value(borrow=True)
    if not isinstance(value, Array | np.ndarray | np.generic):
        return variable.type.filter(value)
    if not fits(variable.type, value):
        expected = f"{variable.type.dtype} of shape {format_shape(variable.type.shape)}"
        raise TypeError(f"{variable.name} must be {expected}, got {value.dtype} of shape {format_shape(value.shape)}")
    return jax.device_put(value, device) if value.ndim == 4 else value


def fits(tensor_type: TensorType, array: Value) -> bool:
    """Return True if an array has the dtype of the type, and a shape that the type allows."""
    if (array.dtype, array.ndim) != (tensor_type.dtype, tensor_type.ndim):
        return False
    return all(n in (None, m) for n, m in zip(tensor_type.shape, array.shape, strict=True))


def format_shape(shape: Sequence[int | None]) -> str:
    """Return a shape as text, with ? for an unknown length."""
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


class DeviceTensorType(TensorType):
    """The type of a shared variable's container: arrays on a device; set_value keeps device arrays in place."""

    def __init__(self, tensor_type: TensorType, device: jax.Device) -> None:
        super().__init__(tensor_type.dtype, shape=tensor_type.shape)
        self.device = device

    def filter(self, value: Any, strict: bool = False, allow_downcast: bool | None = None) -> Array:
        if not (isinstance(value, Array) and fits(self, value)):
            value = super().filter(value, strict, allow_downcast)
        with jax.enable_x64(True):
            return jax.device_put(value, self.device)
