"""The host as a device: buffers in shared memory.

A buffer is an anonymous file in memory (memfd).  It never appears in /dev/shm, and the kernel frees it when the last
process that maps it exits, even after SIGKILL.  Another process of the same user opens it as /proc/<pid>/fd/<fd> and
checks the inode, because both numbers may have been reused in the meantime.  The kernel refuses other users.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multigpu.device.base import Buffer, Device, DeviceError, Shape, check_copy, check_mean, check_new_buffer, split
from multigpu.device.handles import Handle, HostHandle

if TYPE_CHECKING:
    import jax

BLOCK = 1 << 16                                  # floats averaged at a time: sources and sum stay in the L2 cache


class HostBuffer(Buffer):
    """`handle.nbytes` bytes of shared memory, zero when new.

    Args:
        handle: of this buffer.
        memory: the mapped file up to the last byte; None for a part.
        fd: the file, if this process allocated it.
        whole: of a part, the buffer that owns the memory.
    """

    def __init__(
        self, handle: HostHandle, memory: mmap.mmap | None, fd: int | None = None, whole: HostBuffer | None = None,
    ):
        super().__init__(handle.nbytes, memory, whole)
        self._handle = handle
        self._fd = fd

    @property
    def owned(self) -> bool:
        """Whether this process has allocated the buffer, which is open."""
        return self._fd is not None

    @property
    def handle(self) -> HostHandle:
        self._open_memory()
        return self._handle

    @property
    def pointer(self) -> int:
        return self.array((self.nbytes,), np.uint8).ctypes.data

    def part(self, offset: int, nbytes: int) -> HostBuffer:
        self.check_part(offset, nbytes)
        return HostBuffer(self._handle.part(offset, nbytes), None, whole=self._whole or self)

    def array(self, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
        """Return the first bytes as an ndarray, without a copy; a view held after close() keeps the memory mapped."""
        self.check_fits(shape, dtype)
        return np.frombuffer(self._open_memory(), dtype, prod(shape), self._handle.offset).reshape(shape)

    def close(self) -> None:
        self._memory = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class HostDevice(Device[HostBuffer]):
    """Shared memory of this machine.

    All operations are complete on return. unpack() returns views if the backend computes on the host, else copies.
    """

    def __init__(self, on_host: bool = True):
        super().__init__("cpu", on_host)
        self._kept: list[HostBuffer] = []        # see keep_memory()

    def keep_memory(self) -> None:
        """Close all buffers that were opened here, and let allocate() return the others again, with their contents.

        Memory that has been used before has no page faults.
        """
        while self._buffers:
            buffer = self._buffers.pop()
            if buffer.owned:
                self._kept.append(buffer)
            else:
                buffer.close()

    def allocate(self, nbytes: int) -> HostBuffer:
        """Return a new buffer of zeros, or a kept one; raises DeviceError if there is not enough memory."""
        for n, kept in enumerate(self._kept):
            if kept.nbytes == nbytes:
                return self._keep(self._kept.pop(n))
        if not hasattr(os, "memfd_create"):
            raise DeviceError("shared buffers need Linux (memfd_create is missing here); para_load=false works without")
        check_new_buffer(nbytes)
        fd = os.memfd_create("buffer")
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, nbytes)
            handle = HostHandle(os.getpid(), fd, os.fstat(fd).st_ino, nbytes)
            buffer = HostBuffer(handle, mmap.mmap(fd, nbytes), fd)
        except OSError as error:
            os.close(fd)
            raise DeviceError(f"cannot allocate {nbytes} bytes of shared memory: {error.strerror}") from error
        return self._keep(buffer)

    def open(self, handle: Handle) -> HostBuffer:
        if not isinstance(handle, HostHandle):
            raise DeviceError(f"cpu cannot open a {type(handle).__name__}, which names no memory of the host")
        if handle.pid == os.getpid():
            raise DeviceError("a handle cannot be opened in the process that made it; use the buffer itself")
        path = f"/proc/{handle.pid}/fd/{handle.fd}"
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError as error:
            raise DeviceError(f"buffer {path} cannot be opened ({error.strerror}); its owner must be alive") from error
        end = handle.offset + handle.nbytes
        try:
            found = os.fstat(fd)
            if found.st_ino != handle.inode or found.st_size < end:
                raise DeviceError(
                    f"{path} is another file now: inode {found.st_ino} of {found.st_size} bytes, "
                    f"not {handle.inode} of at least {end}; its owner has closed the buffer"
                )
            return self._keep(HostBuffer(handle, mmap.mmap(fd, end)))
        finally:
            os.close(fd)                         # the mapping remains valid

    def staging(self, buffer: HostBuffer, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
        """Return the buffer's own memory; data written there needs no upload."""
        return buffer.array(shape, dtype)

    def upload(self, buffer: HostBuffer, array: np.ndarray | jax.Array) -> None:
        """Copy an array into the first bytes of the buffer, unless it is a view of these bytes."""
        values = np.asarray(array)
        view = buffer.array(values.shape, values.dtype)
        if not same_memory(view, values):
            np.copyto(view, values)

    def download(self, array: np.ndarray, buffer: HostBuffer) -> None:
        """Copy the first bytes of the buffer into an ndarray, unless it is a view of these bytes."""
        view = buffer.array(array.shape, array.dtype)
        if not same_memory(view, array):
            np.copyto(array, view)

    def unpack(self, buffer: HostBuffer, shapes: Sequence[Shape]) -> list[np.ndarray]:
        arrays = split(buffer.array((sum(map(prod, shapes)),), np.float32), shapes)
        return arrays if self.on_host else [array.copy() for array in arrays]

    def copy(self, destination: HostBuffer, source: HostBuffer) -> None:
        check_copy(destination, source)
        np.copyto(destination.array((destination.nbytes,), np.uint8), source.array((source.nbytes,), np.uint8))

    def mean(self, destination: HostBuffer, sources: Sequence[HostBuffer], also: Sequence[HostBuffer] = ()) -> None:
        check_mean(destination, sources, also)
        n = destination.nbytes // 4
        results = [buffer.array((n,), np.float32) for buffer in (destination, *also)]
        terms = [buffer.array((n,), np.float32) for buffer in sources]
        scratch = np.empty(min(n, BLOCK), np.float32)
        # in blocks, so that each byte crosses the memory bus once in each direction
        for start in range(0, n, BLOCK):
            block = slice(start, start + BLOCK)
            total = terms[0][block]
            for term in terms[1:]:
                total = np.add(total, term[block], out=scratch[: n - start])
            mean = np.divide(total, np.float32(len(sources)), out=results[0][block])
            for result in results[1:]:
                result[block] = mean

    def synchronise(self) -> None:
        """Do nothing: host copies are complete on return."""

    def can_reach(self, name: str) -> str | None:
        """Return None for the cpu, else a sentence; any process on this machine can open host buffers."""
        return None if name == "cpu" else f"the cpu cannot open buffers on {name}"

    def close(self) -> None:
        while self._buffers:
            self._buffers.pop().close()
        while self._kept:
            self._kept.pop().close()


def same_memory(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays of one shape and dtype are the same elements in memory."""
    return one.ctypes.data == other.ctypes.data and one.strides == other.strides
