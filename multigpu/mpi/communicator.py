"""The communicator of an MPI job; the only user of mpi4py.

Importing this file initialises MPI.  It is therefore imported only in a process that MPI has started.
"""

import ctypes
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, NoReturn

from mpi4py import MPI

from multigpu.communicator import Communicator, DesyncError, M, decode_step
from multigpu.failure.protocol import name_of
from multigpu.messages import encode
from multigpu.mpi.rank_wrapper import finalize
from multigpu.mpi.requests import in_main_thread, wait

__all__ = ["MPI", "MpiCommunicator", "end_without_finalize", "is_cuda_aware", "leave_no_files"]


MAX_BYTES = 1 << 20                              # of a message
SHORT = 252                                      # bytes that are sent together with their number
LENGTH = struct.Struct("!I")


class HostName(NamedTuple):
    """The name of the sender's machine."""

    name: str
    step: int = 0


class MpiCommunicator(Communicator):
    """Connects the ranks of an MPI communicator.

    Args:
        comm: mpi4py communicator; None: all ranks of the job.

    Attributes:
        elastic: whether the rule is elastic; set by multigpu.mpi.job.
        dropped_ranks: ranks that send no more messages; multigpu.failure.heartbeat adds them.
        has_left: whether this rank has left the others, which continue; set by multigpu.mpi.channel.
        on_detach: called by detach(); set by multigpu.failure.heartbeat.
    """

    over_mpi = True
    works_in_threads = MPI.Query_thread() >= MPI.THREAD_SERIALIZED

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        comm = MPI.COMM_WORLD if comm is None else comm
        self.mpi = comm.Dup()
        self._messages = comm.Dup()              # control messages and arrays cannot match each other
        self.rank = comm.rank
        self.size = comm.size
        on_this_machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = on_this_machine.rank
        self.local_size = on_this_machine.size
        self.on_one_host = self.local_size == self.size
        on_this_machine.Free()
        self.elastic = False
        self.dropped_ranks: set[int] = set()
        self.has_left = False
        self.on_detach: Callable[[], None] = lambda: None
        self._names = [f"rank {rank}" for rank in range(self.size)]
        self._progress = ProgressCounter()
        self.hosts: Sequence[str] = [each.name for each in self.allgather(HostName(socket.gethostname()))]

    def allgather(self, message: M) -> list[M]:
        data = encode(message, MAX_BYTES)
        with self.waiting():
            if not in_main_thread():
                wait([self._messages.Ibarrier()])                # allgather waits actively
            texts = self._allgather(data)
        receiver = f"rank {self.rank}"
        return [
            message if other == self.rank else decode_step(
                text, type(message), message.step, self._names[other], receiver, MAX_BYTES
            )
            for other, text in enumerate(texts)
        ]

    def _allgather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all ranks. Short ones need one call of MPI, longer ones a second.

        Raises:
            DesyncError: a rank announces more than MAX_BYTES.
        """
        own = LENGTH.pack(len(data)) + data[:SHORT].ljust(SHORT, b"\0")
        frames = bytearray(len(own) * self.size)
        self._messages.Allgather([own, MPI.BYTE], [frames, MPI.BYTE])
        starts = range(0, len(frames), len(own))
        lengths = [LENGTH.unpack_from(frames, start)[0] for start in starts]
        if max(lengths) <= SHORT:
            return [
                bytes(frames[start + LENGTH.size : start + LENGTH.size + length])
                for start, length in zip(starts, lengths, strict=True)
            ]
        if max(lengths) > MAX_BYTES:
            raise DesyncError(
                f"{self._names[lengths.index(max(lengths))]} sends a message of {max(lengths)} bytes, and at most "
                f"{MAX_BYTES} are possible: it does not belong to this run; restart all from one checkpoint"
            )
        texts = bytearray(sum(lengths))
        self._messages.Allgatherv([data, MPI.BYTE], [texts, lengths, MPI.BYTE])
        ends = [*accumulate(lengths)]
        return [bytes(texts[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def set_pid(self, rank: int, pid: int) -> None:
        self._names[rank] = name_of(rank, pid, self.hosts[rank])

    def waiting(self) -> "ProgressCounter":
        return self._progress

    def progress(self) -> None:
        """Record progress, after each step and each validation batch."""
        self._progress.record()

    def pace(self) -> tuple[int, bool, bool]:
        """Return (a count that rises with progress, whether this rank waits for others, whether it has done a step)."""
        return self._progress.count, self._progress.depth > 0, self._progress.calls > 1

    def detach(self) -> None:
        self.on_detach()


class ProgressCounter:
    """Progress of a rank, and the context in which it waits for others; multigpu.failure.monitor detects hung ranks.

    Attributes:
        count: rises with any progress.
        calls: calls of record(); the first call precedes the first step.
        depth: nesting depth of the `with` blocks that wait for others.
    """

    def __init__(self) -> None:
        self.count = 0
        self.calls = 0
        self.depth = 0

    def record(self) -> None:
        """Record progress of this rank."""
        self.count += 1
        self.calls += 1

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *error: object) -> None:
        self.depth -= 1
        self.count += 1


def leave_no_files() -> None:
    """Unlink the shared memory of MPICH that this process has mapped; every rank calls it after MPI is initialised.

    MPICH unlinks it in MPI_Finalize, but not after MPI_Abort or a signal.
    """
    for path in mapped(r"/dev/shm/mpich_shm_\w+$"):
        Path(path).unlink(missing_ok=True)


def end_without_finalize(status: int) -> NoReturn:
    """End this process with this status if ranks are missing, because MPI_Finalize would wait for them forever."""
    for path in mapped(r"/dev/shm/sm_segment\S+$"):          # Open MPI unlinks these only in MPI_Finalize
        Path(path).unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    finalize()
    os._exit(status)


def is_cuda_aware() -> bool:
    """Return whether the MPI library reports that it accepts GPU memory (MPIX_Query_cuda_support).

    Open MPI has this function, and so has MPICH from 4.0 on.  A library without it is not CUDA-aware.
    """
    for path in sorted(mapped(r"\S*/libmp[^/\s]*\.so\S*")):
        query = getattr(ctypes.CDLL(path), "MPIX_Query_cuda_support", None)
        if query is not None:
            return bool(query())
    return False


def mapped(pattern: str) -> set[str]:
    """Return the files that this process has mapped and whose path matches the pattern."""
    maps = Path("/proc/self/maps")
    return set(re.findall(pattern, maps.read_text("utf-8", "replace") if maps.exists() else "", re.MULTILINE))
