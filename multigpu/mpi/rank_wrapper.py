"""Wrapper process of an elastic MPICH rank: mpiexec starts the wrapper, and the rank runs as its child.

MPICH's mpiexec (Hydra) kills all ranks as soon as a process that it started dies by a signal or exits without
MPI_Finalize, regardless of its option -disable-auto-cleanup.  For an elastic rule that process is therefore a wrapper:
it starts the rank, forwards signals to it, and exits as the rank exits.  Only if a detached rank dies, the wrapper
reports to mpiexec, on the rank's behalf, that the rank has finished, and exits with a status instead of a signal.

Logs and messages name the process of the rank.  Killing its wrapper kills the job.  Open MPI's mpiexec needs an option
instead of a wrapper: mpiexec --enable-recovery.

Source: Balaji et al. 2010, "PMI: A Scalable Parallel Process-Management Interface for Extreme-Scale Systems" (PMI-1).
"""

import os
import resource
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from multigpu.launch.process import SIGNALS, signal_at_parents_end, stop_signals

WRAPPER_FD = "RANK_WRAPPER_FD"                   # set in a wrapped rank: the write end of a pipe to its wrapper
HYDRA_RANK = "MPI_LOCALRANKID"                   # distinguishes MPICH's mpiexec from others that use PMI
PMI_FD = "PMI_FD"


def wrap_rank() -> None:
    """Under MPICH's mpiexec, start this rank again as a child of this process and exit as it exits; return in the rank.

    Call it before MPI is initialised and before any thread starts.
    """
    if started_by_hydra() and not is_wrapped():
        run_wrapper()


def run_wrapper() -> NoReturn:
    """Start the rank, forward signals to it and end as it ends."""
    detached, report_detached = os.pipe()
    os.set_inheritable(report_detached, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)            # until there is a rank to forward them to
    command = [sys.executable, *sys.orig_argv[1:]]
    environment = os.environ | {WRAPPER_FD: str(report_detached)}
    rank = os.posix_spawn(sys.executable, command, environment, setsigmask=[])
    os.close(report_detached)

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(rank, number)

    for number in stop_signals():
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _, status = os.waitpid(rank, 0)
    end_as_rank(os.waitstatus_to_exitcode(status), detached=os.read(detached, 1) != b"")


def end_as_rank(exitcode: int, detached: bool) -> NoReturn:
    """End this process as the rank has ended: with a status, or by a signal (negative) unless the rank was detached."""
    if detached:
        finalize()
    elif exitcode < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))         # the rank has already dumped core, if enabled
        if -exitcode in SIGNALS:
            signal.signal(-exitcode, signal.SIG_DFL)
        os.kill(os.getpid(), -exitcode)
    os._exit(max(exitcode, 0))


def end_with_proxy() -> None:
    """Under MPICH's mpiexec, have the kernel kill this process with its parent: mpiexec's proxy, or the rank's wrapper.

    mpiexec controls the ranks of a machine through its proxy there. If only the proxy is killed, mpiexec neither ends
    the job nor forwards signals to the ranks. Call it before MPI is initialised, because a rank waits for others there.
    """
    if started_by_hydra():
        signal_at_parents_end(signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)                          # the parent died before


def report_detached() -> None:
    """Notify this rank's wrapper, if any, that from here on the others can continue without this rank."""
    if is_wrapped():
        os.write(int(os.environ[WRAPPER_FD]), b".")


def is_wrapped() -> bool:
    """Return whether this process is a rank with a wrapper."""
    return WRAPPER_FD in os.environ


def started_by_hydra() -> bool:
    """Return whether MPICH's mpiexec has started this process or its wrapper."""
    return HYDRA_RANK in os.environ and PMI_FD in os.environ


def finalize() -> None:
    """Report to MPICH's mpiexec that this rank has finished, as MPI_Finalize does."""
    if started_by_hydra():
        with suppress(OSError):                  # fails after MPI_Finalize
            connection = int(os.environ[PMI_FD])
            os.write(connection, b"cmd=finalize\n")
            os.read(connection, 1024)
