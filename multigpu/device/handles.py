"""Names of buffers, which travel between processes: plain, so that whoever passes one on needs neither device."""

from typing import NamedTuple

from multigpu.device import checks


def part_of(handle, offset, nbytes):
    """The handle of `nbytes` bytes of this buffer from `offset` on."""
    checks.part(offset, nbytes, handle.nbytes)
    return handle._replace(offset=handle.offset + offset, nbytes=nbytes)


class HostHandle(NamedTuple):
    """Names a buffer to another process: file `fd` of process `pid`, and the bytes of it that are meant."""

    pid: int
    fd: int
    inode: int
    nbytes: int
    offset: int = 0

    part = part_of


class CudaHandle(NamedTuple):
    """Names a buffer to another process: CUDA's handle of the whole allocation, and the bytes of it that are meant."""

    pid: int
    gpu: str                                     # its address on the PCI bus: the same in every process
    ipc: bytes                                   # 64 bytes
    nbytes: int
    offset: int = 0

    part = part_of
