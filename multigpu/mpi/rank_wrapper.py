"""Wrapper process of an elastic MPICH rank: mpiexec starts the wrapper, and the rank runs as its child.

MPICH's mpiexec (Hydra) kills all ranks as soon as a process that it started dies by a signal or exits without
MPI_Finalize, regardless of its option -disable-auto-cleanup.  For an elastic rule that process is therefore a wrapper:
it starts the rank, forwards signals to it, and exits as the rank exits.  Only if a detached rank dies, the wrapper
reports to mpiexec, on the rank's behalf, that the rank has finished, and exits with a status instead of a signal.

Logs and messages name the process of the rank.  Killing its wrapper kills the job.  Open MPI's mpiexec needs an option
instead of a wrapper: mpiexec --enable-recovery.

Source: Balaji et al. 2010, "PMI: A Scalable Parallel Process-Management Interface for Extreme-Scale Systems" (PMI-1).
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

from multigpu.process import PR_SET_PDEATHSIG, SIGNALS

MARK = "STAND_IN_FD"                             # set in a wrapped rank: the write end of a pipe to its wrapper
HYDRA = "MPI_LOCALRANKID"                        # distinguishes MPICH's mpiexec from others that use PMI
PMI = "PMI_FD"


def wrap_rank():
    """Under MPICH's mpiexec, start this rank again as a child of this process and exit as it exits; return in the rank.

    Call it before MPI is initialised and before any thread starts.
    """
    if MARK in os.environ:
        return end_with_parent()
    if HYDRA not in os.environ or PMI not in os.environ:
        return None
    said, saying = os.pipe()
    os.set_inheritable(saying, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)            # until there is a rank to forward them to
    command = [sys.executable, *sys.orig_argv[1:]]
    rank = os.posix_spawn(sys.executable, command, os.environ | {MARK: str(saying)}, setsigmask=[])
    os.close(saying)
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: forward_signal(number, rank))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_as(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]), may_go=os.read(said, 1) != b"")


def forward_signal(number, rank):
    with suppress(ProcessLookupError):
        os.kill(rank, number)


def end_as(code, may_go):
    """End this process as the rank has ended: with a status, or, if `code` is negative, by a signal."""
    if code >= 0 or may_go:
        if may_go:
            finalize()
        os._exit(max(code, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))             # the rank has already dumped core, if enabled
    if -code in SIGNALS:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


def end_with_parent():
    """Have the kernel kill this process with its wrapper (Linux), because mpiexec controls only the wrapper."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def may_go():
    """Notify this rank's wrapper, if any, that from here on the others can continue without this rank."""
    if MARK in os.environ:
        os.write(int(os.environ[MARK]), b".")


def is_wrapped():
    return MARK in os.environ


def finalize():
    """Report to MPICH's mpiexec that this rank has finished, as MPI_Finalize does."""
    if HYDRA in os.environ and PMI in os.environ:
        with suppress(OSError):                  # fails after MPI_Finalize
            place = int(os.environ[PMI])
            os.write(place, b"cmd=finalize\n")
            os.read(place, 1024)
