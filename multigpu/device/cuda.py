"""A GPU as a device: PyCUDA for memory, inter-process handles and copies between GPUs; JAX arrays without a copy.

Only what PyCUDA has allocated (cuMemAlloc) is exported: CUDA refuses handles of JAX's own memory.  JAX computes in each
GPU's primary context, so PyCUDA takes the same.  It is on the thread's stack only while a verb runs, since one left
there at exit aborts the process.  Copies and means go, in order, to one stream of this device.

Use a device in the thread that opened it.

Source: Ding et al. 2014, sections 2.2 and 4.3.
"""

import os
import weakref
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycuda.driver as cuda

from multigpu.device import MOST_SOURCES, DeviceError, checks, number_of
from multigpu.device.handles import CudaHandle

KERNEL = Path(__file__).with_name("mean.ptx")
PARAMETERS = f"P{MOST_SOURCES}PQI"               # of the kernel, as mean.cu lists them
THREADS, MOST_BLOCKS = 256, 4096                 # of one mean: a million threads keep the memory of any GPU busy


class About(NamedTuple):
    """What a GPU is: memory and what is free of it in bytes, and its compute capability as in "9.0"."""

    model: str
    memory: int
    free: int
    capability: str


class CudaBuffer:
    """`nbytes` bytes of GPU memory, of undefined content when new, from `offset` of an allocation on.

    memory  PyCUDA's DeviceAllocation, or the IPCMemoryHandle of another process's allocation; None for a part
    handle  of an opened buffer, the one that it was opened by
    whole   of a part: the buffer whose memory it is
    """

    def __init__(self, device, nbytes, memory, offset=0, handle=None, whole=None):
        self.device, self.nbytes = device, nbytes
        self.is_opened = handle is not None if whole is None else whole.is_opened
        self.staged = None                       # page-locked memory, once staging() was asked for it
        self._memory, self._offset, self._handle, self._whole = memory, offset, handle, whole

    @property
    def pointer(self):
        """Address of the first byte in this process; raises DeviceError when the buffer is closed."""
        self._check_open()
        return int((self._whole or self)._memory) + self._offset

    @property
    def handle(self):
        """What another process needs to open this buffer, as long as it is open here; DeviceError without IPC."""
        if self._whole is not None:
            return self._whole.handle._replace(offset=self._offset, nbytes=self.nbytes)
        self._check_open()
        if self._handle is None:
            self._handle = self.device.export(self)
        return self._handle

    def part(self, offset, nbytes):
        """`nbytes` bytes of this buffer from `offset` on; open as long as the whole is, and closing it does nothing."""
        self._check_open()
        checks.part(offset, nbytes, self.nbytes)
        return CudaBuffer(self.device, nbytes, None, self._offset + offset, whole=self._whole or self)

    def array(self, shape, dtype):
        """The first bytes as the engine takes them, after the copies under way have ended.

        A jax.Array that is this memory: use it only while the buffer is open, and wait for what was computed from it
        before the bytes change.  For an engine on the host: a copy, an ndarray.
        """
        self._check_open()
        checks.fits(shape, dtype, self.nbytes)
        return self.device.array(self, shape, dtype)

    def close(self):
        """Free the memory, or let go of another process's; calling it again does nothing."""
        if self._memory is not None:
            self.device.release(self._memory)
        self._memory = self.staged = None

    def _check_open(self):
        if (self._whole or self)._memory is None:
            raise DeviceError(f"this buffer of {self.nbytes} bytes is closed; use it before close() or open it anew")


class CudaDevice:
    """GPU number `number` as CUDA counts, with the verbs of multigpu.device.

    on_host  the engine computes with NumPy arrays: array() and unpack() copy to the host, and JAX is never imported
    Raises DeviceError, with the cure, where it cannot be used.
    """

    def __init__(self, number, on_host=True):
        self.name = f"cuda{number}"
        self._number, self.on_host = number, on_host
        self._gpu = find(number)
        try:
            self._context = self._gpu.retain_primary_context()
        except cuda.Error as error:
            raise DeviceError(f"{self.name} cannot be used ({error}); nvidia-smi shows who uses it") from error
        # also at exit, where PyCUDA itself would release a primary context as if it were another
        self._release = weakref.finalize(self, self._context.detach)
        self._buffers = []
        self._being_read = []                    # arrays that must stay until the copies under way have ended
        with self._current():
            self._stream = cuda.Stream()

    @contextmanager
    def _current(self):
        """This GPU's context as the current one of the thread."""
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()

    def allocate(self, nbytes):
        """A new CudaBuffer of `nbytes` bytes; raises DeviceError where there is no memory for it."""
        if nbytes < 1:
            raise ValueError(f"a buffer holds at least 1 byte, got {nbytes}")
        with self._current():
            try:
                return self._keep(CudaBuffer(self, nbytes, cuda.mem_alloc(nbytes)))
            except cuda.MemoryError as error:
                free, total = cuda.mem_get_info()
                raise DeviceError(
                    f"{self.name} has no {nbytes:,} bytes left: {free:,} of its {total:,} are free; "
                    "a smaller batch_size needs less"
                ) from error

    def export(self, buffer):
        """The handle of a buffer allocated here; raises DeviceError where CUDA has no IPC."""
        with self._current():
            try:
                ipc = bytes(cuda.mem_get_ipc_handle(buffer.pointer))
            except cuda.Error as error:
                raise DeviceError(
                    f"memory of {self.name} cannot be shared with another process ({error}); "
                    "CUDA has no IPC under WSL, on Jetson and in some virtual machines"
                ) from error
        return CudaHandle(os.getpid(), self._gpu.pci_bus_id(), ipc, buffer.nbytes)

    def open(self, handle):
        """The buffer that another process's handle names; raises DeviceError when it cannot be had."""
        if not isinstance(handle, CudaHandle):
            raise DeviceError(f"{self.name} cannot open a {type(handle).__name__}, which names no memory of a GPU")
        if handle.pid == os.getpid():
            raise DeviceError("a handle cannot be opened in the process that made it; use the buffer itself")
        with self._current():
            try:
                memory = cuda.IPCMemoryHandle(bytearray(handle.ipc))
            except cuda.Error as error:
                raise DeviceError(
                    f"{self.name} cannot open a buffer of process {handle.pid} on GPU {handle.gpu} ({error}); its "
                    "owner must be alive and have it open, two GPUs need peer access, and two containers --ipc=host"
                ) from error
            return self._keep(CudaBuffer(self, handle.nbytes, memory, handle.offset, handle))

    def array(self, buffer, shape, dtype):
        """CudaBuffer.array."""
        if not self.on_host:
            self.synchronise()
            return jax_array(self._jax_device, buffer, shape, dtype)
        array = np.empty(shape, dtype)
        self.download(array, buffer)
        return array

    def staging(self, buffer, shape, dtype):
        """Page-locked host memory as an ndarray, the same for each call: fill it once its last upload has ended."""
        checks.fits(shape, dtype, buffer.nbytes)
        if buffer.staged is None:
            with self._current():
                buffer.staged = cuda.pagelocked_empty(buffer.nbytes, np.uint8)
        return buffer.staged[: prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def upload(self, buffer, array):
        """Copy an ndarray, or a jax.Array once it is computed, into the first bytes of the buffer.

        It may end later: keep the array as it is, and a jax.Array from being donated, until synchronise().
        """
        checks.fits(array.shape, array.dtype, buffer.nbytes)
        source = pointer_of_jax(array)
        with self._current():
            if source is None:
                array = np.ascontiguousarray(array)
                cuda.memcpy_htod_async(buffer.pointer, array, self._stream)
            elif source != buffer.pointer:
                cuda.memcpy_dtod_async(buffer.pointer, source, array.nbytes, self._stream)
        self._being_read.append(array)

    def download(self, array, buffer):
        """Copy the first bytes of the buffer into a contiguous ndarray; the copies before it have ended too."""
        checks.fits(array.shape, array.dtype, buffer.nbytes)
        with self._current():
            cuda.memcpy_dtoh_async(array, buffer.pointer, self._stream)
        self.synchronise()

    def unpack(self, buffer, shapes):
        """The float32 arrays of `shapes` that lie end to end in the buffer, as copies that are made on return."""
        n = sum(map(prod, shapes))
        flat = self.array(buffer, (n,), np.float32)
        return split(flat, shapes) if self.on_host else jax_split(flat, shapes)

    def copy(self, destination, source):
        """Copy all bytes of buffer `source` to buffer `destination`, of the same size, on this GPU or another."""
        checks.copy(destination, source)
        with self._current():
            self._copy(destination, source)

    def _copy(self, destination, source):
        if all(buffer.device is self and not buffer.is_opened for buffer in (destination, source)):
            cuda.memcpy_dtod_async(destination.pointer, source.pointer, source.nbytes, self._stream)
        else:
            # PyCUDA 2026.1 crashes unless both contexts are given, and then takes the current one for both, which is
            # right for memory opened in it; elsewhere the driver finds the GPU by the address
            cuda.memcpy_peer_async(
                destination.pointer, source.pointer, source.nbytes, self._context, self._context, self._stream
            )

    def mean(self, destination, sources, also=()):
        """Fill `destination`, and the buffers of `also`, with the mean of `sources`; each may be among the sources."""
        checks.mean(destination, sources, also)
        n = destination.nbytes // 4
        pointers = [source.pointer for source in sources] + [0] * (MOST_SOURCES - len(sources))
        blocks = min(-(-n // THREADS), MOST_BLOCKS)
        with self._current():
            self._mean.prepared_async_call(
                (blocks, 1), (THREADS, 1, 1), self._stream, destination.pointer, *pointers, n, len(sources)
            )
            for buffer in also:
                self._copy(buffer, destination)

    @cached_property
    def _mean(self):
        """The kernel of mean.ptx, compiled by the driver for this GPU."""
        function = cuda.module_from_buffer(KERNEL.read_bytes() + b"\0").get_function("mean")
        function.prepare(PARAMETERS)
        return function

    def synchronise(self):
        """Wait for every copy and mean."""
        with self._current():
            self._stream.synchronize()
        self._being_read.clear()

    @contextmanager
    def lent(self):
        """This GPU's context as the thread's current one; yields the handle of the stream of its copies.

        For a library that queues work of its own there, which synchronise() waits for like any other.
        """
        with self._current():
            yield self._stream.handle

    def about(self):
        """This GPU as About."""
        with self._current():
            free, total = cuda.mem_get_info()
        return About(self._gpu.name(), total, free, "{}.{}".format(*self._gpu.compute_capability()))

    def can_reach(self, name):
        """None, or a sentence why another process's buffers on the device of that name cannot be opened here."""
        if name == "cpu":
            return f"{self.name} cannot open buffers in host memory"
        try:
            reachable = name == self.name or self.has_peer_access(name)
        except DeviceError as error:
            return str(error)
        if not reachable:
            return f"{self.name} has no peer access to {name} (`nvidia-smi topo -p2p r` shows which GPUs have it)"
        return self._no_ipc

    def has_peer_access(self, name):
        """Whether this GPU can read and write the memory of another; raises DeviceError when there is none such."""
        return self._gpu.can_access_peer(find(number_of(name)))

    @cached_property
    def _no_ipc(self):
        """Why memory of this GPU cannot be shared between processes, or None."""
        try:
            self.export(self.allocate(4))
        except DeviceError as error:
            return str(error)

    @cached_property
    def _jax_device(self):
        return jax_device(self._number)

    def close(self):
        """Close every buffer, first those of other processes, and release the GPU; calling it again does nothing."""
        if not self._release.alive:
            return
        self.synchronise()
        for buffer in sorted(self._buffers, key=lambda buffer: not buffer.is_opened):
            buffer.close()
        self._buffers.clear()
        vars(self).pop("_mean", None)
        self._stream = None
        self._release()

    def release(self, memory):
        """Free an allocation, or let go of another process's."""
        with self._current():
            if isinstance(memory, cuda.IPCMemoryHandle):
                memory.close()
            else:
                memory.free()

    def _keep(self, buffer):
        self._buffers.append(buffer)
        return buffer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def count():
    """How many GPUs CUDA has here; raises DeviceError where it cannot be used."""
    try:
        cuda.init()
        return cuda.Device.count()
    except cuda.Error as error:
        raise DeviceError(
            f"CUDA cannot be used here ({error}); nvidia-smi must list a GPU, and devices=cpu needs none"
        ) from error


def find(number):
    """PyCUDA's Device of that number; raises DeviceError, saying what is there, when there is none."""
    if number < count():
        return cuda.Device(number)
    there = ", ".join(f"cuda{each} ({cuda.Device(each).name()})" for each in range(count())) or "no GPU"
    raise DeviceError(f"there is no cuda{number} on this machine, which has {there}")


def split(flat, shapes):
    """One after the other, pieces of a flat array in these shapes."""
    ends = np.cumsum([prod(shape) for shape in shapes])
    return [flat[end - prod(shape) : end].reshape(shape) for end, shape in zip(ends.tolist(), shapes, strict=True)]


# ---- How a PyCUDA buffer becomes a jax.Array without a copy, and back: nowhere else.  JAX is imported only here, by
# ---- name, when an engine that computes with it asks.


class Memory:
    """A buffer as JAX takes it over, which does not keep this alive: __cuda_array_interface__, version 3."""

    def __init__(self, buffer, shape, dtype):
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (buffer.pointer, False),
            "shape": tuple(shape),
            "typestr": np.dtype(dtype).str,
            "strides": None,
            "stream": None,                      # nothing is under way: CudaDevice.array() has synchronised
        }


def jax_device(number):
    """The JAX device of GPU `number`; raises DeviceError when JAX does not see it."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")     # if this is JAX's first use: it would take all
    try:
        devices = import_module("jax").local_devices(backend="cuda")
    except (ImportError, RuntimeError) as error:
        raise DeviceError(f'JAX sees no GPU ({error}); `pip install -e ".[cuda]"` installs one that does') from error
    for device in devices:
        if device.local_hardware_id == number:
            return device
    raise DeviceError(f"JAX sees {len(devices)} GPUs, but not cuda{number}; JAX_CUDA_VISIBLE_DEVICES may hide it")


def jax_array(device, buffer, shape, dtype):
    """The first bytes of the buffer as a jax.Array on this JAX device, not a copy."""
    jax = import_module("jax")
    return jax.device_put(jax.numpy.asarray(Memory(buffer, shape, dtype)), device)


def jax_split(flat, shapes):
    """Pieces of a flat jax.Array in these shapes, as arrays of JAX's own that are computed on return."""
    return import_module("jax").block_until_ready(jax_splitter(tuple(map(tuple, shapes)))(flat))


@cache
def jax_splitter(shapes):
    """split() compiled for these shapes; what a compiled function of JAX returns is new memory."""
    return import_module("jax").jit(lambda flat: split(flat, shapes))


def pointer_of_jax(array):
    """Where a jax.Array on a GPU lies, once it is computed; None for an array on the host."""
    if isinstance(array, np.ndarray | np.generic) or next(iter(array.devices())).platform != "gpu":
        return None
    return array.block_until_ready().unsafe_buffer_pointer()
