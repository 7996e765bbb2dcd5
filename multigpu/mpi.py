"""The other ranks of an MPI job, and the line to them; the only user of mpi4py.

Importing this file initialises MPI, so it is imported by name, and only in a process that MPI has started.

The small things that ranks say to each other are the messages of multigpu.partners; arrays go by `comm`, an mpi4py
communicator of the training's own.
"""

import ctypes
import os
import re
import socket
import sys
from pathlib import Path

from mpi4py import MPI

from multigpu.lines import name_of
from multigpu.partners import parted
from multigpu.stand_in import finalize

__all__ = ["MPI", "MpiPartners", "end_without_finalize", "is_cuda_aware", "leave_no_files"]


class MpiPartners:
    """What multigpu.partners.Partners is, where the workers are the ranks of an MPI communicator.

    comm   arrays may be sent over it, from the main thread
    hosts  the name of each rank's machine
    gone   the ranks that have been dropped, whose messages do not come: multigpu.watchman
    left   whether this rank has left the others, who go on; lone: whether the rule allows that
    """

    over_mpi = True

    def __init__(self, comm=None):
        comm = MPI.COMM_WORLD if comm is None else comm
        self.comm, self._talk = comm.Dup(), comm.Dup()           # what is said and what is moved cannot meet
        self.rank, self.size = comm.rank, comm.size
        near = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.on_one_host = near.size == comm.size
        self.local_rank, self.local_size = near.rank, near.size  # among those of this machine
        near.Free()
        self.hosts = comm.allgather(socket.gethostname())
        self._names = [f"rank {rank}" for rank in range(self.size)]
        self._pace = Pace()
        self.gone, self.lone, self.left, self.on_apart = set(), False, False, lambda: None

    def meet(self, message):
        """Tell a message to all and hear all of its kind and step, one's own among them: a list, by rank.

        Raises OutOfStep for a message of another kind or step.
        """
        with self.waiting():
            heard = self._talk.allgather(message)
        for other, each in enumerate(heard):
            if type(each) is not type(message) or each.step != message.step:
                awaited = f"{type(message).__name__} of step {message.step}"
                raise parted(self._names[other], each, f"rank {self.rank}", awaited)
        return heard

    def apart(self):
        """Say that from here on nobody waits for this rank but a server, which can do without."""
        self.on_apart()

    def watch(self, on_death):
        """A context, with close(), in which on_death(rank) is called, from a thread, as soon as a partner is gone."""
        return Unwatched()

    def waiting(self):
        """A context in which this rank waits for others: who is missed is one of them: multigpu.watchman."""
        return self._pace

    def progress(self):
        """Say that this rank goes on: after each step, and each batch of the validation."""
        self._pace.steps += 1
        self._pace.signs += 1

    def pace(self):
        """(a count that rises while this rank goes on, whether it waits for others, whether it has done a step)."""
        return self._pace.steps, self._pace.depth > 0, self._pace.signs > 1

    def name(self, other, pid):
        """Say a partner's process, too, where a sentence names it."""
        self._names[other] = name_of(other, pid, self.hosts[other])


class Pace:
    """How a rank goes on.

    steps  rises with whatever it does        signs  calls of progress(); the first comes before the first step
    depth  of the `with` blocks that wait for others
    """

    def __init__(self):
        self.steps, self.signs, self.depth = 0, 0, 0

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *error):
        self.depth -= 1
        self.steps += 1


class Unwatched:
    """Nobody is watched."""

    def close(self):
        """There is nothing to end."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """See close()."""


def leave_no_files():
    """Unlink the shared memory of MPICH that this process has mapped; every rank calls it, once MPI has begun.

    MPICH would do so at its end, but not after one by MPI_Abort or a signal.
    """
    for path in mapped(r"/dev/shm/mpich_shm_\w+$"):
        Path(path).unlink(missing_ok=True)


def end_without_finalize(status):
    """End this process with this status where ranks are missing: MPI_Finalize would wait for them for ever."""
    for path in mapped(r"/dev/shm/sm_segment\S+$"):          # Open MPI's, which its MPI_Finalize would unlink
        Path(path).unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    finalize()
    os._exit(status)


def is_cuda_aware():
    """Whether the MPI library says of itself that it reads and writes the memory of GPUs (MPIX_Query_cuda_support).

    Open MPI has the question, and MPICH from 4.0 on.  A library that does not know it is not.
    """
    for path in sorted(mapped(r"\S*/libmp[^/\s]*\.so\S*")):
        question = getattr(ctypes.CDLL(path), "MPIX_Query_cuda_support", None)
        if question is not None:
            return bool(question())
    return False


def mapped(pattern):
    """The files of this pattern that this process has mapped."""
    maps = Path("/proc/self/maps")
    return set(re.findall(pattern, maps.read_text() if maps.exists() else "", re.MULTILINE))
