"""Handles of buffers, which are sent between processes.

They are plain tuples, so that a process that forwards them needs neither device.
"""

from typing import NamedTuple

from multigpu.device import checks


def part_of(handle, offset, nbytes):
    """Return the handle of `nbytes` bytes of this buffer from `offset` on."""
    checks.part(offset, nbytes, handle.nbytes)
    return handle._replace(offset=handle.offset + offset, nbytes=nbytes)


class HostHandle(NamedTuple):
    """Identifies a buffer to another process: file `fd` of process `pid`, and a range of its bytes."""

    pid: int
    fd: int
    inode: int
    nbytes: int
    offset: int = 0

    part = part_of


class CudaHandle(NamedTuple):
    """Identifies a buffer to another process: CUDA's handle of the whole allocation, and a range of its bytes."""

    pid: int
    gpu: str                                     # its address on the PCI bus: the same in every process
    ipc: bytes                                   # 64 bytes
    nbytes: int
    offset: int = 0

    part = part_of
