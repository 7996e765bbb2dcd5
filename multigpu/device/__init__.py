"""Devices: buffers that can be copied, averaged, and shared with another process.

    allocate(nbytes) -> buffer          buffer.handle can be sent to another process, which there calls
    open(handle) -> buffer              the same bytes; close it before its owner closes the original
    buffer.part(offset, nbytes)         a part of it, itself a buffer; handle.part(offset, nbytes) is its handle
    buffer.array(shape, dtype)          its first bytes as an input array of the backend
    staging(buffer, shape, dtype)       host memory to fill before upload(): an ndarray
    upload(buffer, array)               an array of the backend, or an ndarray, into the buffer; asynchronous
    download(array, buffer)             the buffer into an ndarray; complete on return
    unpack(buffer, shapes)              the concatenated float32 arrays in it, as arrays that the backend may keep
    copy(destination, source)           between two buffers of one size; asynchronous
    mean(destination, sources, also)    float32, elementwise: their sum in this order, divided by their number;
                                        `also` are buffers that get the same result; asynchronous
    synchronise()                       wait for all of these; only then notify another process
    can_reach(name)                     None, or a sentence why buffers on the named device cannot be opened
    close()                             of one buffer, or of the device with all its buffers

GPU copies are asynchronous: always synchronise before sending a message.

mean() gives the same bits on every device: IEEE 754 rounds each sum and the quotient of two float32 correctly, both
devices take the sources in the order given and use a true division, subnormal numbers are kept, and without a
multiplication there is nothing to fuse.

Source: Ding et al. 2014, sections 2.2 and 4.3.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

MOST_SOURCES = 16                                # buffers that one mean() takes: the parameters of the CUDA kernel


class DeviceError(RuntimeError):
    """A device or a buffer is not available or must not be used; the message is one sentence."""


def open_device(name, on_host=True):
    """Open a device by its name in config.devices: "cpu", or "cuda" and a number.

    It is imported by name, so that only a run on a GPU imports PyCUDA.

    Args:
        name: name of the device.
        on_host: True if the backend computes with NumPy arrays (cpu, numpy): a CUDA device then passes copies to the
            backend and does not import JAX. False: the backend is JAX, which owns its memory.

    Raises:
        DeviceError: the device is not available; the message includes the remedy.
    """
    if name == "cpu":
        return import_module("multigpu.device.host").HostDevice(on_host)
    number = number_of(name)
    home = cuda_home(name)
    if not on_host and (obstacle := why_no_jax()):
        raise DeviceError(f"backend jax cannot compute on {name}: {obstacle}")
    return home.CudaDevice(number, on_host)


def cuda_home(name):
    """Import and return the module multigpu.device.cuda for the named device; raises DeviceError if that fails."""
    try:
        return import_module("multigpu.device.cuda")
    except ModuleNotFoundError as error:
        cure = '`pip install -e ".[cuda]"` installs it where CUDA is'
        raise DeviceError(f"{name} needs PyCUDA, which is not installed ({error}); {cure}") from error
    except ImportError as error:
        cure = "install NVIDIA's driver, or take devices=cpu"
        raise DeviceError(f"{name} needs a CUDA driver, which is not there ({error}); {cure}") from error


def why_no_jax():
    """Return None if JAX is installed with GPU support, else a sentence; JAX is not imported."""
    if find_spec("jax") is None:
        return 'JAX is not installed; `pip install -e ".[cuda]"` installs it with CUDA'
    plugins = find_spec("jax_plugins")           # namespace package to which each backend of JAX adds itself
    if not plugins or not any("cuda" in each.name for each in iter_modules(plugins.submodule_search_locations)):
        return 'JAX is installed without CUDA; `pip install -e ".[cuda]"` adds it'
    return None


def number_of(name):
    """Return the N of "cudaN"; raises DeviceError for any other name."""
    if not re.fullmatch(r"cuda\d{1,4}", name):
        raise DeviceError(f"a device is called cpu, or cuda and a number as in cuda0, got {name!r}")
    return int(name.removeprefix("cuda"))
