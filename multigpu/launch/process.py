"""Processes: starting and ending them, their signals, and descriptions of their exit status.

Processes are spawned, never forked.  A forked process inherits the pipe ends of others, so that a death no longer
causes an EOF.
"""

import ctypes
import itertools
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Generic, Self, TypeVar

from alexnet.native.pytensor_flags import pytensor_flags
from multigpu.launch.clock import TimeLimit

CONTEXT = multiprocessing.get_context("spawn")
# finish the step, save, end; batch systems send SIGUSR1, a terminal that closes sends SIGHUP
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
FORWARDED = signal.SIGUSR2                       # worker to launcher: a SIGTERM that the worker has received
SIGNAL_DEBOUNCE = 1.0                            # seconds within which signals count as one
PR_SET_PDEATHSIG = 1                             # linux/prctl.h

Key = TypeVar("Key")


def pipes_between(ranks: Iterable[int]) -> dict[int, dict[int, Connection]]:
    """Create a pipe between every two ranks; return {rank: {other: the Connection of rank to other}}."""
    pipes: dict[int, dict[int, Connection]] = {rank: {} for rank in ranks}
    for one, other in itertools.combinations(pipes, 2):
        pipes[one][other], pipes[other][one] = CONTEXT.Pipe()
    return pipes


def start(process: BaseProcess, threads: int | str) -> None:
    """Start a process that uses `threads` OpenMP and BLAS threads, with SIGNALS blocked in it.

    The signals stay pending until the process calls set_signal_handlers, so that neither a Ctrl-C nor a SIGTERM to the
    process group can interrupt its imports.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()        # it ignores SIGINT and SIGTERM, and keeps SIGUSR1 blocked
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)        # starting the tracker has unblocked them
        with environment(OMP_NUM_THREADS=str(threads), PYTENSOR_FLAGS=pytensor_flags()):
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the processes that are started within the with block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def stop_signals() -> set[signal.Signals]:
    """Return SIGNALS, without SIGHUP if this process was started with it ignored, as nohup does."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return {number for number in SIGNALS if not (ignored and number == signal.SIGHUP)}


def set_signal_handlers(on_sigterm: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set the handlers of a child process: SIGTERM has this handler, the parent handles the others of SIGNALS."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def signal_at_parents_end(number: signal.Signals) -> None:
    """Have the kernel send this process a signal as soon as the parent's thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def end_with_parent() -> None:
    """Have the kernel kill this process, started with multiprocessing, as soon as its parent ends."""
    signal_at_parents_end(signal.SIGKILL)
    if os.getppid() != parent_pid():
        sys.exit(1)                              # the parent died before the prctl call


def parent_pid() -> int:
    """Return the process id of the process that started this one with multiprocessing."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    return parent.pid


class PeerWatch(Generic[Key]):
    """Calls a function, from a thread, as soon as a peer closes its end of a pipe.

    It works while this process computes, and with unread messages in the pipe.  Close it before an expected end of a
    peer.

    Args:
        pipes: {key: Connection} to each peer; they must outlive this object.
        on_death: called once, with the key of the first peer that has closed its end.
    """

    def __init__(self, pipes: Mapping[Key, Connection], on_death: Callable[[Key], None]) -> None:
        self._keys = {pipe.fileno(): key for key, pipe in pipes.items()}
        self._on_death = on_death
        self._wakeup, self._close = os.pipe()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="peer watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        for pipe in self._keys:
            poll.register(pipe, 0)               # no event is requested; poll always reports a hang-up
        ready = [pipe for pipe, _ in poll.poll()]
        if self._wakeup not in ready:
            self._on_death(self._keys[ready[0]])

    def close(self) -> None:
        """Stop watching; on_death is not called after this returns.  Further calls do nothing."""
        if not self._closed:
            self._closed = True
            os.write(self._close, b".")
            self._thread.join()
            os.close(self._wakeup)
            os.close(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def end(process: BaseProcess, grace: float) -> None:
    """Wait `grace` seconds for a process to end, then kill it; it has ended and is reaped on return."""
    end_within(process, TimeLimit(grace))


def end_within(process: BaseProcess, limit: TimeLimit) -> None:
    """Wait for a process to end as long as time is left, then kill it; it has ended and is reaped on return."""
    while process.exitcode is None and (pause := limit.look()):
        process.join(pause)
    if process.exitcode is None:
        process.kill()
        process.join()


def describe_exit(exitcode: int | None) -> str:
    """Describe an exit code, negative for the signal that killed the process, as the end of a sentence."""
    if exitcode is None or exitcode >= 0:
        return f"ended with status {exitcode}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-exitcode, f'signal {-exitcode}')}"
