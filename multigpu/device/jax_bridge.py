"""Conversion between GPU buffers and jax.Arrays, without a copy.

JAX is imported by the first function that needs it: it is optional, and only a backend that computes with it may load
it, because it initialises the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alexnet.native.packages import install
from multigpu.device.base import Buffer, DeviceError, Shape, split
from multigpu.device.cuda_array import CudaArray

if TYPE_CHECKING:
    import jax


def jax_device(number: int) -> jax.Device:
    """Return the JAX device of GPU `number`; raises DeviceError if JAX does not find it."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")     # at JAX's first use; else it takes all memory
    try:
        import jax  # optional, and imported only where it is used

        devices = jax.local_devices(backend="cuda")
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"JAX finds no GPU ({error}); `{install('cuda')}` installs a JAX that supports GPUs"
        ) from error
    for device in devices:
        if device.local_hardware_id == number:
            return device
    raise DeviceError(f"JAX finds {len(devices)} GPUs, but not cuda{number}; JAX_CUDA_VISIBLE_DEVICES may hide it")


def jax_array(device: jax.Device, buffer: Buffer, shape: Shape, dtype: npt.DTypeLike) -> jax.Array:
    """Return the first bytes of the buffer as a jax.Array on this JAX device, without a copy."""
    import jax  # optional, and imported only where it is used

    return jax.device_put(jax.numpy.asarray(CudaArray(buffer, shape, dtype)), device)


def jax_split(flat: jax.Array, shapes: Sequence[Shape]) -> list[jax.Array]:
    """Split a flat jax.Array into arrays of these shapes in JAX's own memory, computed on return."""
    import jax  # optional, and imported only where it is used

    return jax.block_until_ready(jax_splitter(tuple(map(tuple, shapes)))(flat))


@cache
def jax_splitter(shapes: tuple[Shape, ...]) -> Callable[[jax.Array], list[jax.Array]]:
    """Compile split() for these shapes; a compiled JAX function returns new memory."""
    import jax  # optional, and imported only where it is used

    return jax.jit(lambda flat: split(flat, shapes))


def pointer_of_jax(array: np.ndarray | jax.Array) -> int | None:
    """Return the address of a jax.Array on a GPU, once it is computed; None for an array on the host."""
    if isinstance(array, np.ndarray | np.generic) or next(iter(array.devices())).platform != "gpu":
        return None
    return array.block_until_ready().unsafe_buffer_pointer()
