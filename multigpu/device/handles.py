"""Handles of buffers, which are sent between processes.

They are plain tuples, so that a process that forwards them needs neither device.
"""

from typing import NamedTuple, Self


class HostHandle(NamedTuple):
    """Identifies a buffer to another process: file `fd` of process `pid`, and a range of its bytes."""

    pid: int
    fd: int
    inode: int
    nbytes: int
    offset: int = 0

    def part(self, offset: int, nbytes: int) -> Self:
        """Return the handle of `nbytes` bytes of this buffer from `offset` on."""
        check_range(offset, nbytes, self.nbytes)
        return self._replace(offset=self.offset + offset, nbytes=nbytes)


class CudaHandle(NamedTuple):
    """Identifies a buffer to another process: CUDA's handle of the whole allocation, and a range of its bytes."""

    pid: int
    gpu: str                                     # its address on the PCI bus: the same in every process
    ipc: bytes                                   # 64 bytes
    nbytes: int
    offset: int = 0

    def part(self, offset: int, nbytes: int) -> Self:
        """Return the handle of `nbytes` bytes of this buffer from `offset` on."""
        check_range(offset, nbytes, self.nbytes)
        return self._replace(offset=self.offset + offset, nbytes=nbytes)


Handle = HostHandle | CudaHandle


def check_range(offset: int, nbytes: int, size: int) -> None:
    """Raise ValueError unless `nbytes` bytes from `offset` on are within a buffer of `size` bytes."""
    if offset < 0 or nbytes < 1 or offset + nbytes > size:
        raise ValueError(f"bytes {offset} to {offset + nbytes} are not within a buffer of {size}")
