"""A GPU as a device: PyCUDA for memory, IPC handles and copies between GPUs; JAX arrays without a copy.

Only memory that PyCUDA has allocated (cuMemAlloc) is exported, because CUDA refuses handles of memory that JAX has
allocated.  JAX computes in each GPU's primary context, so PyCUDA uses the same context.  The context is on the
thread's stack only during a method call, because a context that is left on the stack at exit aborts the process.
Copies and means run in order in one stream of this device.

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
PARAMETERS = f"P{MOST_SOURCES}PQI"               # of the kernel, in the order of mean.cu
THREADS, MOST_BLOCKS = 256, 4096                 # of one mean: a million threads saturate the memory of any GPU


class GpuInfo(NamedTuple):
    """Properties of a GPU: total and free memory in bytes, and its compute capability as in "9.0"."""

    model: str
    memory: int
    free: int
    capability: str


class CudaBuffer:
    """`nbytes` bytes of GPU memory from `offset` of an allocation on, undefined when new.

    memory:  PyCUDA's DeviceAllocation, or the IPCMemoryHandle of another process's allocation; None for a part
    handle:  of an opened buffer, the handle that opened it
    whole:   of a part: the buffer that owns the memory
    """

    def __init__(self, device, nbytes, memory, offset=0, handle=None, whole=None):
        self.device, self.nbytes = device, nbytes
        self.is_opened = handle is not None if whole is None else whole.is_opened
        self.staged = None                       # page-locked memory, allocated by the first staging()
        self._memory, self._offset, self._handle, self._whole = memory, offset, handle, whole

    @property
    def pointer(self):
        """Address of the first byte in this process; raises DeviceError if the buffer is closed."""
        self._check_open()
        return int((self._whole or self)._memory) + self._offset

    @property
    def handle(self):
        """Handle with which another process opens this buffer, as long as it is open here; DeviceError without IPC."""
        if self._whole is not None:
            return self._whole.handle._replace(offset=self._offset, nbytes=self.nbytes)
        self._check_open()
        if self._handle is None:
            self._handle = self.device.export(self)
        return self._handle

    def part(self, offset, nbytes):
        """Return `nbytes` bytes from `offset` on as a buffer.

        It is open as long as the whole buffer is; closing it has no effect.
        """
        self._check_open()
        checks.part(offset, nbytes, self.nbytes)
        return CudaBuffer(self.device, nbytes, None, self._offset + offset, whole=self._whole or self)

    def array(self, shape, dtype):
        """Return the first bytes as an input array of the backend, after all pending copies.

        For JAX: a jax.Array that shares this memory. Use it only while the buffer is open, and wait for all results
        computed from it before the bytes change.  For a backend on the host: a copy, an ndarray.
        """
        self._check_open()
        checks.fits(shape, dtype, self.nbytes)
        return self.device.array(self, shape, dtype)

    def close(self):
        """Free the memory, or close another process's memory; further calls do nothing."""
        if self._memory is not None:
            self.device.release(self._memory)
        self._memory = self.staged = None

    def _check_open(self):
        if (self._whole or self)._memory is None:
            raise DeviceError(f"this buffer of {self.nbytes} bytes is closed; use it before close(), or open it again")


class CudaDevice:
    """GPU number `number` in CUDA's numbering, with the methods of multigpu.device.

    Args:
        number: the GPU.
        on_host: the backend computes with NumPy arrays: array() and unpack() copy to the host, and JAX is not imported.

    Raises:
        DeviceError: the GPU cannot be used; the message includes the remedy.
    """

    def __init__(self, number, on_host=True):
        self.name = f"cuda{number}"
        self._number, self.on_host = number, on_host
        self._gpu = find(number)
        try:
            self._context = self._gpu.retain_primary_context()
        except cuda.Error as error:
            raise DeviceError(f"{self.name} cannot be used ({error}); nvidia-smi shows who uses it") from error
        # also at exit, where PyCUDA itself would release a primary context like an ordinary one
        self._release = weakref.finalize(self, self._context.detach)
        self._buffers = []
        self._being_read = []                    # arrays that must live until the pending copies have ended
        with self._current():
            self._stream = cuda.Stream()

    @contextmanager
    def _current(self):
        """Make this GPU's context the thread's current one."""
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()

    def allocate(self, nbytes):
        """Return a new CudaBuffer of `nbytes` bytes; raises DeviceError if there is not enough memory."""
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
        """Return the handle of a buffer allocated here; raises DeviceError if CUDA has no IPC."""
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
        """Open the buffer of another process's handle; raises DeviceError if that is not possible."""
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
        """Implement CudaBuffer.array."""
        if not self.on_host:
            self.synchronise()
            return jax_array(self._jax_device, buffer, shape, dtype)
        array = np.empty(shape, dtype)
        self.download(array, buffer)
        return array

    def staging(self, buffer, shape, dtype):
        """Return page-locked host memory as an ndarray, the same in each call.

        Do not refill it before its last upload has ended.
        """
        checks.fits(shape, dtype, buffer.nbytes)
        if buffer.staged is None:
            with self._current():
                buffer.staged = cuda.pagelocked_empty(buffer.nbytes, np.uint8)
        return buffer.staged[: prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def upload(self, buffer, array):
        """Copy an ndarray, or a jax.Array once it is computed, into the first bytes of the buffer.

        The copy is asynchronous: do not change the array, or donate a jax.Array, before synchronise().
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
        """Copy the first bytes of the buffer into a contiguous ndarray; earlier copies are complete on return, too."""
        checks.fits(array.shape, array.dtype, buffer.nbytes)
        with self._current():
            cuda.memcpy_dtoh_async(array, buffer.pointer, self._stream)
        self.synchronise()

    def unpack(self, buffer, shapes):
        """Return the concatenated float32 arrays of `shapes` in the buffer as copies, which are complete on return."""
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
            # PyCUDA 2026.1 crashes unless both contexts are given, and then uses the current one for both. That is
            # correct for memory opened in it; in other cases the driver finds the GPU by the address.
            cuda.memcpy_peer_async(
                destination.pointer, source.pointer, source.nbytes, self._context, self._context, self._stream
            )

    def mean(self, destination, sources, also=()):
        """Fill `destination`, and the buffers of `also`, with the mean of `sources`; each may be one of the sources."""
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
        """Make this GPU's context the thread's current one; yield the handle of its copy stream.

        A library can queue its own work in this stream; synchronise() waits for it as well.
        """
        with self._current():
            yield self._stream.handle

    def about(self):
        """Return the GpuInfo of this GPU."""
        with self._current():
            free, total = cuda.mem_get_info()
        return GpuInfo(self._gpu.name(), total, free, "{}.{}".format(*self._gpu.compute_capability()))

    def can_reach(self, name):
        """Return None, or a sentence why another process's buffers on the named device cannot be opened here."""
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
        """Return whether this GPU can access another one's memory; raises DeviceError if that GPU does not exist."""
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
        """Close every buffer, those of other processes first, and release the GPU; further calls do nothing."""
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
        """Free an allocation, or close another process's memory."""
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
    """Return the number of GPUs that CUDA finds; raises DeviceError if CUDA cannot be used."""
    try:
        cuda.init()
        return cuda.Device.count()
    except cuda.Error as error:
        raise DeviceError(
            f"CUDA cannot be used here ({error}); nvidia-smi must list a GPU, and devices=cpu needs none"
        ) from error


def find(number):
    """Return PyCUDA's Device of that number; raises DeviceError, which lists the existing ones, if there is none."""
    if number < count():
        return cuda.Device(number)
    there = ", ".join(f"cuda{each} ({cuda.Device(each).name()})" for each in range(count())) or "no GPU"
    raise DeviceError(f"there is no cuda{number} on this machine, which has {there}")


def split(flat, shapes):
    """Split a flat array into consecutive pieces of these shapes."""
    ends = np.cumsum([prod(shape) for shape in shapes])
    return [flat[end - prod(shape) : end].reshape(shape) for end, shape in zip(ends.tolist(), shapes, strict=True)]


# ---- Conversion between PyCUDA buffers and jax.Arrays without a copy.  JAX is imported only here, by name, when a
# ---- JAX backend needs it.


class BufferInterface:
    """A buffer for import into JAX, which does not keep this object alive: __cuda_array_interface__, version 3."""

    def __init__(self, buffer, shape, dtype):
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (buffer.pointer, False),
            "shape": tuple(shape),
            "typestr": np.dtype(dtype).str,
            "strides": None,
            "stream": None,                      # no copy is pending: CudaDevice.array() has synchronised
        }


def jax_device(number):
    """Return the JAX device of GPU `number`; raises DeviceError if JAX does not find it."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")     # at JAX's first use; else it takes all memory
    try:
        devices = import_module("jax").local_devices(backend="cuda")
    except (ImportError, RuntimeError) as error:
        raise DeviceError(f'JAX sees no GPU ({error}); `pip install -e ".[cuda]"` installs one that does') from error
    for device in devices:
        if device.local_hardware_id == number:
            return device
    raise DeviceError(f"JAX sees {len(devices)} GPUs, but not cuda{number}; JAX_CUDA_VISIBLE_DEVICES may hide it")


def jax_array(device, buffer, shape, dtype):
    """Return the first bytes of the buffer as a jax.Array on this JAX device, without a copy."""
    jax = import_module("jax")
    return jax.device_put(jax.numpy.asarray(BufferInterface(buffer, shape, dtype)), device)


def jax_split(flat, shapes):
    """Split a flat jax.Array into arrays of these shapes in JAX's own memory, computed on return."""
    return import_module("jax").block_until_ready(jax_splitter(tuple(map(tuple, shapes)))(flat))


@cache
def jax_splitter(shapes):
    """Compile split() for these shapes; a compiled JAX function returns new memory."""
    return import_module("jax").jit(lambda flat: split(flat, shapes))


def pointer_of_jax(array):
    """Return the address of a jax.Array on a GPU, once it is computed; None for an array on the host."""
    if isinstance(array, np.ndarray | np.generic) or next(iter(array.devices())).platform != "gpu":
        return None
    return array.block_until_ready().unsafe_buffer_pointer()
