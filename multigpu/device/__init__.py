"""Devices: buffers that can be copied, averaged, and shared with another process.

base.py states the interfaces Device and Buffer; host.py and cuda.py implement them.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from alexnet.native.packages import install
from multigpu.device.base import MAX_SOURCES, Buffer, Device, DeviceError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["MAX_SOURCES", "Buffer", "Device", "DeviceError", "cuda_home", "number_of", "open_device", "why_no_jax"]


def open_device(name: str, on_host: bool = True) -> Device:
    """Open a device.

    Args:
        name: as in config.devices: "cpu", or "cuda" and a number.
        on_host: True if the backend computes with NumPy arrays (cpu, numpy): a CUDA device then passes copies to the
            backend and does not import JAX. False: the backend is JAX, which owns its memory.

    Raises:
        DeviceError: the device is not available; the message includes the remedy.
    """
    if name == "cpu":
        from multigpu.device.host import HostDevice  # imports this package

        return HostDevice(on_host)
    number = number_of(name)
    cuda = cuda_home(name)
    if not on_host and (obstacle := why_no_jax()):
        raise DeviceError(f"backend jax cannot compute on {name}: {obstacle}")
    return cuda.CudaDevice(number, on_host)


def cuda_home(name: str) -> ModuleType:
    """Import and return the module multigpu.device.cuda for the named device; raises DeviceError if that fails."""
    try:
        from multigpu.device import cuda  # imports PyCUDA, which only a run on a GPU needs
    except ModuleNotFoundError as error:
        remedy = f"`{install('cuda')}` installs it on a machine with CUDA"
        raise DeviceError(f"{name} needs PyCUDA, which is not installed ({error}); {remedy}") from error
    except ImportError as error:
        remedy = "install NVIDIA's driver, or set devices=cpu"
        raise DeviceError(f"{name} needs a CUDA driver, which is not installed ({error}); {remedy}") from error
    return cuda


def why_no_jax() -> str | None:
    """Return None if JAX is installed with GPU support, else a sentence; JAX is not imported."""
    if find_spec("jax") is None:
        return f"JAX is not installed; `{install('cuda')}` installs it with CUDA"
    plugins = find_spec("jax_plugins")           # namespace package to which each backend of JAX adds itself
    folders = plugins.submodule_search_locations if plugins else None
    if not folders or not any("cuda" in each.name for each in iter_modules(folders)):
        return f"JAX is installed without CUDA; `{install('cuda')}` adds it"
    return None


def number_of(name: str) -> int:
    """Return the N of "cudaN"; raises DeviceError for any other name."""
    if not re.fullmatch(r"cuda\d{1,4}", name):
        raise DeviceError(f"a device is called cpu, or cuda and a number as in cuda0, got {name!r}")
    return int(name.removeprefix("cuda"))
