"""The host as a device: buffers in shared memory.

A buffer is an anonymous file in memory (memfd).  It never appears in /dev/shm, and the kernel frees it when the last
process that maps it exits, even after SIGKILL.  Another process of the same user opens it as /proc/<pid>/fd/<fd> and
checks the inode, because both numbers may have been reused in the meantime.
"""

import mmap
import os
from math import prod

import numpy as np

from multigpu.device import DeviceError, checks
from multigpu.device.handles import HostHandle

PIECE = 1 << 16                                  # floats averaged at a time: sources and sum stay in the L2 cache


class HostBuffer:
    """`handle.nbytes` bytes of shared memory, zero when new."""

    def __init__(self, handle, fd, owned=False, whole=None):
        self.nbytes = handle.nbytes
        self._handle = handle
        self._memory = mmap.mmap(fd, handle.offset + handle.nbytes) if whole is None else None
        self._fd = fd if owned else None         # the owner's fd, which the handle names
        self._whole = whole                      # of a part: the buffer that owns the memory

    @property
    def handle(self):
        """Handle with which another process opens this buffer, as long as it is open here."""
        self._mapped()
        return self._handle

    def part(self, offset, nbytes):
        """Return `nbytes` bytes from `offset` on as a buffer.

        It is open as long as the whole buffer is; closing it has no effect.
        """
        self._mapped()
        return HostBuffer(self._handle.part(offset, nbytes), None, whole=self._whole or self)

    def array(self, shape, dtype):
        """Return the first bytes as an ndarray, without a copy; a view held after close() keeps the memory mapped."""
        checks.fits(shape, dtype, self.nbytes)
        return np.frombuffer(self._mapped(), dtype, prod(shape), self._handle.offset).reshape(shape)

    def close(self):
        """Release the memory; further calls do nothing."""
        self._memory = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _mapped(self):
        """Return the mapped memory; raises DeviceError if the buffer is closed."""
        memory = (self._whole or self)._memory
        if memory is None:
            raise DeviceError(f"this buffer of {self.nbytes} bytes is closed; use it before close(), or open it again")
        return memory


class HostDevice:
    """Shared memory of this machine, with the methods of multigpu.device.

    on_host: whether the backend computes with NumPy arrays; unpack() then returns views, else copies.
    """

    name = "cpu"

    def __init__(self, on_host=True):
        self.on_host = on_host
        self._buffers = []

    def allocate(self, nbytes):
        """Return a new HostBuffer of `nbytes` zero bytes; raises DeviceError if there is not enough memory."""
        if not hasattr(os, "memfd_create"):
            raise DeviceError("shared buffers need Linux (memfd_create is missing here); para_load=false works without")
        if nbytes < 1:
            raise ValueError(f"a buffer holds at least 1 byte, got {nbytes}")
        fd = os.memfd_create("buffer")
        try:
            os.ftruncate(fd, nbytes)
            buffer = HostBuffer(HostHandle(os.getpid(), fd, os.fstat(fd).st_ino, nbytes), fd, owned=True)
        except OSError as error:
            os.close(fd)
            raise DeviceError(f"cannot allocate {nbytes} bytes of shared memory: {error.strerror}") from error
        return self._keep(buffer)

    def open(self, handle):
        """Open the buffer of another process's handle; raises DeviceError if it no longer exists."""
        if not isinstance(handle, HostHandle):
            raise DeviceError(f"cpu cannot open a {type(handle).__name__}, which names no memory of the host")
        if handle.pid == os.getpid():
            raise DeviceError("a handle cannot be opened in the process that made it; use the buffer itself")
        path = f"/proc/{handle.pid}/fd/{handle.fd}"
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError as error:
            raise DeviceError(f"buffer {path} cannot be opened ({error.strerror}); its owner must be alive") from error
        try:
            found = os.fstat(fd)
            if found.st_ino != handle.inode or found.st_size < handle.offset + handle.nbytes:
                raise DeviceError(
                    f"{path} is another file now: inode {found.st_ino} of {found.st_size} bytes, "
                    f"not {handle.inode} of at least {handle.offset + handle.nbytes}; its owner has closed the buffer"
                )
            return self._keep(HostBuffer(handle, fd))
        finally:
            os.close(fd)                         # the mapping remains valid

    def staging(self, buffer, shape, dtype):
        """Return the buffer's own memory; data written there needs no upload."""
        return buffer.array(shape, dtype)

    def upload(self, buffer, array):
        """Copy an array into the first bytes of the buffer, unless it is a view of these bytes."""
        array = np.asarray(array)
        place = buffer.array(array.shape, array.dtype)
        if not same_memory(place, array):
            np.copyto(place, array)

    def download(self, array, buffer):
        """Copy the first bytes of the buffer into an ndarray, unless it is a view of these bytes."""
        place = buffer.array(array.shape, array.dtype)
        if not same_memory(place, array):
            np.copyto(array, place)

    def unpack(self, buffer, shapes):
        """Return the concatenated float32 arrays of `shapes` in the buffer, as a list of views or of copies."""
        flat = buffer.array((sum(map(prod, shapes)),), np.float32)
        pieces = np.split(flat, np.cumsum([prod(shape) for shape in shapes])[:-1])
        arrays = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return arrays if self.on_host else [array.copy() for array in arrays]

    def copy(self, destination, source):
        """Copy all bytes of buffer `source` to buffer `destination`, of the same size; complete on return."""
        checks.copy(destination, source)
        np.copyto(destination.array((destination.nbytes,), np.uint8), source.array((source.nbytes,), np.uint8))

    def mean(self, destination, sources, also=()):
        """Fill `destination`, and the buffers of `also`, with the mean of `sources`; complete on return.

        Each of them may be one of the sources.  The computation is blocked, so that each byte crosses the memory bus
        once in each direction.
        """
        checks.mean(destination, sources, also)
        n = destination.nbytes // 4
        results, terms = ([buffer.array((n,), np.float32) for buffer in buffers]
                          for buffers in ((destination, *also), sources))
        room = np.empty(min(n, PIECE), np.float32)
        for start in range(0, n, PIECE):
            piece = slice(start, start + PIECE)
            total = terms[0][piece]
            for term in terms[1:]:
                total = np.add(total, term[piece], out=room[: n - start])
            mean = np.divide(total, np.float32(len(sources)), out=results[0][piece])
            for result in results[1:]:
                result[piece] = mean

    def synchronise(self):
        """Do nothing: host copies are complete on return."""

    def can_reach(self, name):
        """Return None for the cpu, else a sentence; any process on this machine can open host buffers."""
        return None if name == "cpu" else f"the cpu cannot open buffers that lie on {name}"

    def close(self):
        """Close every buffer allocated or opened here, in reverse order."""
        while self._buffers:
            self._buffers.pop().close()

    def _keep(self, buffer):
        self._buffers.append(buffer)
        return buffer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def same_memory(one, other):
    """Return whether two arrays of one shape and dtype are the same elements in memory."""
    return one.ctypes.data == other.ctypes.data and one.strides == other.strides
