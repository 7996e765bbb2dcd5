"""Devices: where buffers lie, how they are moved and averaged, and how another process sees them.

    allocate(nbytes) -> buffer          buffer.handle can be sent to another process, which there calls
    open(handle) -> buffer              the same bytes; close it before its owner closes the original
    buffer.part(offset, nbytes)         a piece of it, itself a buffer; handle.part(offset, nbytes) names one
    buffer.array(shape, dtype)          its first bytes as what a step of the engine takes
    staging(buffer, shape, dtype)       host memory to fill before upload(): an ndarray
    upload(buffer, array)               an array of the engine, or an ndarray, into the buffer; may end later
    download(array, buffer)             the buffer into an ndarray; has ended on return
    unpack(buffer, shapes)              float32 arrays that lie end to end in it, as arrays that the engine may keep
    copy(destination, source)           between two buffers of one size; may end later than the call
    mean(destination, sources, also)    float32, element by element: their sum in this order, divided by their number;
                                        `also` are buffers that get the same; may end later than the call
    synchronise()                       wait for all of these; only then tell another process of it
    can_reach(name)                     None, or a sentence why buffers of the device of that name cannot be opened
    close()                             of one buffer, or of the device with all its buffers

A copy on a GPU does not wait for the host, so the order is always copy, synchronise, message.

mean() gives the same bits on every device: IEEE 754 rounds each sum and the quotient of two float32 correctly, both
devices take the sources in the order given, the division is a division, subnormal numbers are kept, and with no
multiplication there is nothing to fuse.

Source: Ding et al. 2014, sections 2.2 and 4.3.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

MOST_SOURCES = 16                                # buffers that one mean() takes: the parameters of the CUDA kernel


class DeviceError(RuntimeError):
    """A device or a buffer that cannot be had, or may not be used; the message is one sentence."""


def open_device(name, on_host=True):
    """The device of a name of config.devices: "cpu", or "cuda" and a number.

    on_host  True where the engine computes with NumPy arrays (cpu, reference): a CUDA device then copies what it
             hands to the engine, and knows nothing of JAX; False: the engine is JAX, which owns its memory
    By name, so that only a run on a GPU imports PyCUDA.  Raises DeviceError, with the cure, for what is not there.
    """
    if name == "cpu":
        return import_module("multigpu.device.host").HostDevice(on_host)
    number = number_of(name)
    home = cuda_home(name)
    if not on_host and (obstacle := why_no_jax()):
        raise DeviceError(f"engine jax cannot compute on {name}: {obstacle}")
    return home.CudaDevice(number, on_host)


def cuda_home(name):
    """The module multigpu.device.cuda, imported for the device of that name; raises DeviceError where it cannot be."""
    try:
        return import_module("multigpu.device.cuda")
    except ModuleNotFoundError as error:
        cure = '`pip install -e ".[cuda]"` installs it where CUDA is'
        raise DeviceError(f"{name} needs PyCUDA, which is not installed ({error}); {cure}") from error
    except ImportError as error:
        cure = "install NVIDIA's driver, or take devices=cpu"
        raise DeviceError(f"{name} needs a CUDA driver, which is not there ({error}); {cure}") from error


def why_no_jax():
    """None where JAX is installed with what it needs to compute on a GPU, else a sentence; it is not imported."""
    if find_spec("jax") is None:
        return 'JAX is not installed; `pip install -e ".[cuda]"` installs it with CUDA'
    plugins = find_spec("jax_plugins")           # a package that each of JAX's backends adds itself to
    if not plugins or not any("cuda" in each.name for each in iter_modules(plugins.submodule_search_locations)):
        return 'JAX is installed without CUDA; `pip install -e ".[cuda]"` adds it'
    return None


def number_of(name):
    """The N of "cudaN"; raises DeviceError for any other name."""
    if not re.fullmatch(r"cuda\d{1,4}", name):
        raise DeviceError(f"a device is called cpu, or cuda and a number as in cuda0, got {name!r}")
    return int(name.removeprefix("cuda"))
