"""The host as a device: buffers in shared memory.

A buffer is a file in memory without a name (memfd).  Nothing of it is ever seen in /dev/shm, and the kernel frees
it when the last process that maps it is gone, also after SIGKILL.  Another process of the same user opens it as
/proc/<pid>/fd/<fd> and checks the inode, because both numbers may have been given anew since.
"""

import mmap
import os
from math import prod
from typing import NamedTuple

import numpy as np

from multigpu.device import DeviceError


class HostHandle(NamedTuple):
    """Names a buffer to another process: file `fd` of process `pid`, and the bytes of it that are meant."""

    pid: int
    fd: int
    inode: int
    nbytes: int
    offset: int = 0

    def part(self, offset, nbytes):
        """The handle of `nbytes` bytes of this buffer from `offset` on."""
        if offset < 0 or nbytes < 1 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} are not within a buffer of {self.nbytes}")
        return self._replace(offset=self.offset + offset, nbytes=nbytes)


class HostBuffer:
    """`handle.nbytes` bytes of shared memory, zero when new."""

    def __init__(self, fd, handle, owned):
        self.nbytes = handle.nbytes
        self._handle = handle
        self._memory = mmap.mmap(fd, handle.offset + handle.nbytes)
        self._fd = fd if owned else None         # the owner's fd is what the handle names

    @property
    def handle(self):
        """What another process needs to open this buffer, as long as it is open here."""
        self._check_open()
        return self._handle

    def array(self, shape, dtype):
        """The first bytes as an ndarray, not a copy; a view held after close() keeps the memory mapped."""
        self._check_open()
        dtype = np.dtype(dtype)
        if prod(shape) * dtype.itemsize > self.nbytes:
            raise ValueError(f"an array of {dtype} {tuple(shape)} does not fit a buffer of {self.nbytes} bytes")
        return np.frombuffer(self._memory, dtype, prod(shape), self._handle.offset).reshape(shape)

    def close(self):
        """Let go of the memory; calling it again does nothing."""
        self._memory = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _check_open(self):
        if self._memory is None:
            raise DeviceError(f"this buffer of {self.nbytes} bytes is closed; use it before close() or open it anew")


class HostDevice:
    """Shared memory of this machine, with the six verbs of multigpu.device."""

    def __init__(self):
        self._buffers = []

    def allocate(self, nbytes):
        """A new HostBuffer of `nbytes` zero bytes; raises DeviceError where there is no memory for it."""
        if not hasattr(os, "memfd_create"):
            raise DeviceError("shared buffers need Linux (memfd_create is missing here); para_load=false works without")
        if nbytes < 1:
            raise ValueError(f"a buffer holds at least 1 byte, got {nbytes}")
        fd = os.memfd_create("buffer")
        try:
            os.ftruncate(fd, nbytes)
            buffer = HostBuffer(fd, HostHandle(os.getpid(), fd, os.fstat(fd).st_ino, nbytes), owned=True)
        except OSError as error:
            os.close(fd)
            raise DeviceError(f"no {nbytes} bytes of shared memory are to be had: {error.strerror}") from error
        return self._keep(buffer)

    def open(self, handle):
        """The buffer that another process's handle names; raises DeviceError when it is not there any more."""
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
            return self._keep(HostBuffer(fd, handle, owned=False))
        finally:
            os.close(fd)                         # the mapping stays

    def copy(self, destination, source):
        """Copy all bytes of buffer `source` to buffer `destination`, of the same size; done on return."""
        if destination.nbytes != source.nbytes:
            raise ValueError(f"cannot copy {source.nbytes} bytes to a buffer of {destination.nbytes}")
        np.copyto(destination.array((destination.nbytes,), np.uint8), source.array((source.nbytes,), np.uint8))

    def synchronise(self):
        """Wait for every copy: on the host each has ended before its call returned."""

    def close(self):
        """Close every buffer allocated or opened here, the last first."""
        while self._buffers:
            self._buffers.pop().close()

    def _keep(self, buffer):
        self._buffers.append(buffer)
        return buffer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
