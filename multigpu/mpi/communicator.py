"""The communicator of an MPI job; the only user of mpi4py.

Importing this file initialises MPI.  It is therefore imported by name, and only in a process that MPI has started.

Control messages are those of multigpu.communicator; arrays use `comm`, a separate mpi4py communicator.
"""

import ctypes
import os
import re
import socket
import sys
from pathlib import Path

from mpi4py import MPI

from multigpu.communicator import desync_error
from multigpu.failure.protocol import name_of
from multigpu.mpi.rank_wrapper import finalize

__all__ = ["MPI", "MpiCommunicator", "end_without_finalize", "is_cuda_aware", "leave_no_files"]


class MpiCommunicator:
    """Connects the ranks of an MPI communicator; the counterpart of multigpu.communicator.PipeCommunicator.

    Attributes:
        mpi: mpi4py communicator for arrays, to be used from the main thread.
        hosts: host name of each rank.
        dropped_ranks: ranks that have been dropped and send no more messages, see multigpu.failure.monitor.
        has_left: whether this rank has left the others, which continue.
        elastic: whether the rule is elastic.
    """

    over_mpi = True

    def __init__(self, comm=None):
        comm = MPI.COMM_WORLD if comm is None else comm
        self.mpi, self._talk = comm.Dup(), comm.Dup()           # control messages and arrays cannot match each other
        self.rank, self.size = comm.rank, comm.size
        near = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.on_one_host = near.size == comm.size
        self.local_rank, self.local_size = near.rank, near.size  # among the ranks of this machine
        near.Free()
        self.hosts = comm.allgather(socket.gethostname())
        self._names = [f"rank {rank}" for rank in range(self.size)]
        self._pace = PollingInterval()
        self.dropped_ranks, self.elastic, self.has_left, self.on_detach = set(), False, False, lambda: None

    def allgather(self, message):
        """Return the message of every rank, in rank order; collective.

        Raises:
            DesyncError: a rank sent a message of another type or step.
        """
        with self.waiting():
            heard = self._talk.allgather(message)
        for other, each in enumerate(heard):
            if type(each) is not type(message) or each.step != message.step:
                awaited = f"{type(message).__name__} of step {message.step}"
                raise desync_error(self._names[other], each, f"rank {self.rank}", awaited)
        return heard

    def detach(self):
        """Detach this rank: from here on only a server waits for it, and the server can continue without it."""
        self.on_detach()

    def watch(self, on_death):
        """Return a context with close() that watches no peer; multigpu.failure.monitor detects deaths instead."""
        return Unwatched()

    def waiting(self):
        """Return a context in which this rank waits for others; multigpu.failure.monitor does not count it as hung."""
        return self._pace

    def progress(self):
        """Record progress: called after each step and each validation batch."""
        self._pace.steps += 1
        self._pace.signs += 1

    def pace(self):
        """Return (a count that rises with progress, whether this rank waits for others, whether it has done a step)."""
        return self._pace.steps, self._pace.depth > 0, self._pace.signs > 1

    def name(self, other, pid):
        """Add a peer's process id and host to its name in error messages."""
        self._names[other] = name_of(other, pid, self.hosts[other])


class PollingInterval:
    """Progress of a rank.

    Attributes:
        steps: count that rises with any progress.
        signs: calls of progress(); the first call precedes the first step.
        depth: nesting depth of the `with` blocks that wait for others.
    """

    def __init__(self):
        self.steps, self.signs, self.depth = 0, 0, 0

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *error):
        self.depth -= 1
        self.steps += 1


class Unwatched:
    """Context that watches no peer."""

    def close(self):
        """Do nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """See close()."""


def leave_no_files():
    """Unlink the shared memory of MPICH that this process has mapped; every rank calls it after MPI is initialised.

    MPICH unlinks it in MPI_Finalize, but not after MPI_Abort or a signal.
    """
    for path in mapped(r"/dev/shm/mpich_shm_\w+$"):
        Path(path).unlink(missing_ok=True)


def end_without_finalize(status):
    """End this process with this status if ranks are missing, because MPI_Finalize would wait for them forever."""
    for path in mapped(r"/dev/shm/sm_segment\S+$"):          # Open MPI unlinks these only in MPI_Finalize
        Path(path).unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    finalize()
    os._exit(status)


def is_cuda_aware():
    """Return whether the MPI library reports that it accepts GPU memory (MPIX_Query_cuda_support).

    Open MPI has this function, and so has MPICH from 4.0 on.  A library without it is not CUDA-aware.
    """
    for path in sorted(mapped(r"\S*/libmp[^/\s]*\.so\S*")):
        question = getattr(ctypes.CDLL(path), "MPIX_Query_cuda_support", None)
        if question is not None:
            return bool(question())
    return False


def mapped(pattern):
    """Return the files that this process has mapped and whose path matches the pattern."""
    maps = Path("/proc/self/maps")
    return set(re.findall(pattern, maps.read_text() if maps.exists() else "", re.MULTILINE))
