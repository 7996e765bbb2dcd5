"""A GPU as a device: PyCUDA for memory, IPC handles and copies between GPUs; JAX arrays without a copy.

Only memory that PyCUDA has allocated (cuMemAlloc) is exported, because CUDA refuses handles of memory that JAX has
allocated.  JAX computes in each GPU's primary context, so PyCUDA uses the same context.  The context is on the
thread's stack only during a method call, because a context that is left on the stack at exit aborts the process.
Copies and means run in order in one stream of this device.

Source: Ding et al. 2014, sections 2.2 and 4.3.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pycuda.driver as cuda

from multigpu.device import number_of
from multigpu.device.base import (
    MAX_SOURCES,
    Buffer,
    Device,
    DeviceError,
    Shape,
    check_copy,
    check_mean,
    check_new_buffer,
    split,
)
from multigpu.device.handles import CudaHandle, Handle
from multigpu.device.jax_bridge import jax_array, jax_device, jax_split, pointer_of_jax

if TYPE_CHECKING:
    import jax

KERNEL = Path(__file__).with_name("mean.ptx")
PARAMETERS = f"P{MAX_SOURCES}PQI"                # of the kernel, in the order of mean.cu
THREADS = 256                                    # of a block of the kernel
MAX_BLOCKS = 4096                                # a million threads saturate the memory of any GPU


class GpuInfo(NamedTuple):
    """Properties of a GPU: total and free memory in bytes, and its compute capability as in "9.0"."""

    model: str
    memory: int
    free: int
    capability: str


class CudaBuffer(Buffer):
    """`nbytes` bytes of GPU memory from `offset` of an allocation on, undefined when new.

    Args:
        device: opened or allocated the memory.
        nbytes: size of this buffer.
        memory: the allocation, or the IPCMemoryHandle of another process's allocation; None for a part.
        offset: of the first byte in the allocation.
        handle: of an opened buffer, the handle that opened it.
        whole: of a part, the buffer that owns the memory.
    """

    def __init__(
        self, device: CudaDevice, nbytes: int, memory: cuda.DeviceAllocation | cuda.IPCMemoryHandle | None,
        offset: int = 0, handle: CudaHandle | None = None, whole: CudaBuffer | None = None,
    ):
        super().__init__(nbytes, memory, whole)
        self.device = device
        self.is_opened: bool = handle is not None if whole is None else whole.is_opened
        self.staged: np.ndarray | None = None    # page-locked memory, allocated by the first staging()
        self._offset = offset
        self._handle = handle

    @property
    def pointer(self) -> int:
        return int(self._open_memory()) + self._offset

    @property
    def handle(self) -> CudaHandle:
        if self._whole is not None:
            return self._whole.handle._replace(offset=self._offset, nbytes=self.nbytes)
        self._open_memory()
        if self._handle is None:
            self._handle = self.device.export(self)
        return self._handle

    def part(self, offset: int, nbytes: int) -> CudaBuffer:
        self.check_part(offset, nbytes)
        return CudaBuffer(self.device, nbytes, None, self._offset + offset, whole=self._whole or self)

    def array(self, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
        """Return the first bytes as an input array of the backend, after all pending copies.

        For JAX: a jax.Array that shares this memory. Use it only while the buffer is open, and wait for all results
        computed from it before the bytes change.  For a backend on the host: a copy, an ndarray.
        """
        self._open_memory()
        self.check_fits(shape, dtype)
        return self.device.array(self, shape, dtype)

    def close(self) -> None:
        if self._memory is not None:
            self.device.release(self._memory)
        self._memory = None
        self.staged = None


class CudaDevice(Device[CudaBuffer]):
    """A GPU.

    Args:
        number: of the GPU, in CUDA's numbering.
        on_host: the backend computes with NumPy arrays: array() and unpack() copy to the host, and JAX is not imported.

    Raises:
        DeviceError: the GPU cannot be used; the message includes the remedy.
    """

    def __init__(self, number: int, on_host: bool = True):
        super().__init__(f"cuda{number}", on_host)
        self._number = number
        self._gpu = find(number)
        try:
            self._context = self._gpu.retain_primary_context()
        except cuda.Error as error:
            raise DeviceError(f"{self.name} cannot be used ({error}); nvidia-smi shows who uses it") from error
        # also at exit, where PyCUDA itself would release a primary context like an ordinary one
        self._release = weakref.finalize(self, self._context.detach)
        # arrays that must live until the pending copies have ended
        self._being_read: list[np.ndarray | jax.Array] = []
        with self._current():
            self._stream = cuda.Stream()

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make this GPU's context the thread's current one."""
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()

    def allocate(self, nbytes: int) -> CudaBuffer:
        check_new_buffer(nbytes)
        with self._current():
            try:
                return self._keep(CudaBuffer(self, nbytes, cuda.mem_alloc(nbytes)))
            except cuda.MemoryError as error:
                free, total = cuda.mem_get_info()
                raise DeviceError(
                    f"{self.name} has no {nbytes:,} bytes left: {free:,} of its {total:,} are free; "
                    "a smaller micro_batch_size needs less"
                ) from error

    def export(self, buffer: CudaBuffer) -> CudaHandle:
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

    def open(self, handle: Handle) -> CudaBuffer:
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

    def array(self, buffer: CudaBuffer, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray | jax.Array:
        """Implement CudaBuffer.array."""
        if not self.on_host:
            self.synchronise()
            return jax_array(self._jax_device, buffer, shape, dtype)
        array = np.empty(shape, dtype)
        self.download(array, buffer)
        return array

    def staging(self, buffer: CudaBuffer, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
        """Return page-locked host memory; see Device."""
        buffer.check_fits(shape, dtype)
        if buffer.staged is None:
            with self._current():
                buffer.staged = cuda.pagelocked_empty(buffer.nbytes, np.uint8)
        return buffer.staged[: prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def upload(self, buffer: CudaBuffer, array: np.ndarray | jax.Array) -> None:
        """Copy an ndarray, or a jax.Array once it is computed, into the first bytes of the buffer; see Device."""
        buffer.check_fits(array.shape, array.dtype)
        source = pointer_of_jax(array)
        with self._current():
            if source is None:
                array = np.ascontiguousarray(array)
                cuda.memcpy_htod_async(buffer.pointer, array, self._stream)
            elif source != buffer.pointer:
                cuda.memcpy_dtod_async(buffer.pointer, source, array.nbytes, self._stream)
        self._being_read.append(array)

    def download(self, array: np.ndarray, buffer: CudaBuffer) -> None:
        buffer.check_fits(array.shape, array.dtype)
        with self._current():
            cuda.memcpy_dtoh_async(array, buffer.pointer, self._stream)
        self.synchronise()

    def unpack(self, buffer: CudaBuffer, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Return the arrays as copies, which are complete on return; see Device."""
        n = sum(map(prod, shapes))
        flat = self.array(buffer, (n,), np.float32)
        return split(flat, shapes) if self.on_host else jax_split(flat, shapes)

    def copy(self, destination: CudaBuffer, source: CudaBuffer) -> None:
        """Copy all bytes between two buffers of the same size, on this GPU or another."""
        check_copy(destination, source)
        with self._current():
            self._copy(destination, source)

    def _copy(self, destination: CudaBuffer, source: CudaBuffer) -> None:
        if all(buffer.device is self and not buffer.is_opened for buffer in (destination, source)):
            cuda.memcpy_dtod_async(destination.pointer, source.pointer, source.nbytes, self._stream)
        else:
            # PyCUDA 2026.1 crashes unless both contexts are given, and then uses the current one for both. That is
            # correct for memory opened in it; in other cases the driver finds the GPU by the address.
            cuda.memcpy_peer_async(
                destination.pointer, source.pointer, source.nbytes, self._context, self._context, self._stream
            )

    def mean(self, destination: CudaBuffer, sources: Sequence[CudaBuffer], also: Sequence[CudaBuffer] = ()) -> None:
        check_mean(destination, sources, also)
        n = destination.nbytes // 4
        pointers = [source.pointer for source in sources] + [0] * (MAX_SOURCES - len(sources))
        blocks = min(-(-n // THREADS), MAX_BLOCKS)
        with self._current():
            self._mean.prepared_async_call(
                (blocks, 1), (THREADS, 1, 1), self._stream, destination.pointer, *pointers, n, len(sources)
            )
            for buffer in also:
                self._copy(buffer, destination)

    @cached_property
    def _mean(self) -> cuda.Function:
        """The kernel of mean.ptx, compiled by the driver for this GPU."""
        function = cuda.module_from_buffer(KERNEL.read_bytes() + b"\0").get_function("mean")
        function.prepare(PARAMETERS)
        return function

    def synchronise(self) -> None:
        with self._current():
            self._stream.synchronize()
        self._being_read.clear()

    @contextmanager
    def copy_stream(self) -> Iterator[int]:
        """Make this GPU's context the thread's current one; yield the handle of its copy stream.

        A library can queue its own work in this stream; synchronise() waits for it as well.
        """
        with self._current():
            yield self._stream.handle

    def info(self) -> GpuInfo:
        """Return the GpuInfo of this GPU."""
        with self._current():
            free, total = cuda.mem_get_info()
        return GpuInfo(self._gpu.name(), total, free, "{}.{}".format(*self._gpu.compute_capability()))

    def can_reach(self, name: str) -> str | None:
        if name == "cpu":
            return f"{self.name} cannot open buffers in host memory"
        try:
            reachable = name == self.name or self.has_peer_access(name)
        except DeviceError as error:
            return str(error)
        if not reachable:
            return f"{self.name} has no peer access to {name} (`nvidia-smi topo -p2p r` shows which GPUs have it)"
        return self._no_ipc

    def has_peer_access(self, name: str) -> bool:
        """Return whether this GPU can access another one's memory; raises DeviceError if that GPU does not exist."""
        return self._gpu.can_access_peer(find(number_of(name)))

    @cached_property
    def _no_ipc(self) -> str | None:
        """Why memory of this GPU cannot be shared between processes, or None."""
        try:
            self.export(self.allocate(4))
        except DeviceError as error:
            return str(error)
        return None

    @cached_property
    def _jax_device(self) -> jax.Device:
        return jax_device(self._number)

    def close(self) -> None:
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

    def release(self, memory: cuda.DeviceAllocation | cuda.IPCMemoryHandle) -> None:
        """Free an allocation, or close another process's memory."""
        with self._current():
            if isinstance(memory, cuda.IPCMemoryHandle):
                memory.close()
            else:
                memory.free()


def count() -> int:
    """Return the number of GPUs that CUDA finds; raises DeviceError if CUDA cannot be used."""
    try:
        cuda.init()
        return cuda.Device.count()
    except cuda.Error as error:
        raise DeviceError(
            f"CUDA cannot be used here ({error}); nvidia-smi must list a GPU, and devices=cpu needs none"
        ) from error


def find(number: int) -> cuda.Device:
    """Return PyCUDA's Device of that number; raises DeviceError, which lists the existing ones, if there is none."""
    if number < count():
        return cuda.Device(number)
    existing = ", ".join(f"cuda{each} ({cuda.Device(each).name()})" for each in range(count())) or "no GPU"
    raise DeviceError(f"there is no cuda{number} on this machine, which has {existing}")
