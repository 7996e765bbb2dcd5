"""A rank of MPICH's that may die alone: mpiexec has started its stand-in, and the rank is a child of that one.

MPICH's mpiexec (Hydra) kills all ranks as soon as a process that it has started ends by a signal, and also where one
ends without MPI_Finalize, whatever its option -disable-auto-cleanup says.  So for a rule whose server can do without a
client, that process is a stand-in: it starts the rank, hands signals on to it, and ends as the rank ends.  Only where a
rank that may go dies does it tell mpiexec, in the rank's name, that this one has finished, and ends well.

The rank is the process that logs and sentences name; to kill its stand-in is to kill the job.  Open MPI's mpiexec needs
no stand-in but an option: mpiexec --enable-recovery.

Source: Balaji et al. 2010, "PMI: A Scalable Parallel Process-Management Interface for Extreme-Scale Systems" (PMI-1).
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

from multigpu.process import PR_SET_PDEATHSIG, SIGNALS

MARK = "STAND_IN_FD"                             # of a rank that has a stand-in: the end of a pipe to it
HYDRA = "MPI_LOCALRANKID"                        # a variable that tells MPICH's mpiexec from others that speak PMI
PMI = "PMI_FD"


def stand_in():
    """Under MPICH's mpiexec, start this rank anew as a child of this process and end as it ends; returns in the rank.

    To be called before MPI begins, and before there are threads.
    """
    if MARK in os.environ:
        return end_with_parent()
    if HYDRA not in os.environ or PMI not in os.environ:
        return None
    said, saying = os.pipe()
    os.set_inheritable(saying, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)            # until there is a rank to hand them on to
    command = [sys.executable, *sys.orig_argv[1:]]
    rank = os.posix_spawn(sys.executable, command, os.environ | {MARK: str(saying)}, setsigmask=[])
    os.close(saying)
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: hand_on(number, rank))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_as(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]), may_go=os.read(said, 1) != b"")


def hand_on(number, rank):
    with suppress(ProcessLookupError):
        os.kill(rank, number)


def end_as(code, may_go):
    """End this process as the rank has ended: with a status, or, negative, by a signal."""
    if code >= 0 or may_go:
        if may_go:
            finalize()
        os._exit(max(code, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))             # the rank has left one, if any is wanted
    if -code in SIGNALS:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


def end_with_parent():
    """Have the kernel kill this process with its stand-in (Linux), which is all that mpiexec knows of it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def may_go():
    """Say to this rank's stand-in, if it has one, that the others do without this rank from here on."""
    if MARK in os.environ:
        os.write(int(os.environ[MARK]), b".")


def has_stand_in():
    return MARK in os.environ


def finalize():
    """Say to MPICH's mpiexec that this rank has finished, as MPI_Finalize would at its end."""
    if HYDRA in os.environ and PMI in os.environ:
        with suppress(OSError):                  # MPI_Finalize has
            place = int(os.environ[PMI])
            os.write(place, b"cmd=finalize\n")
            os.read(place, 1024)
