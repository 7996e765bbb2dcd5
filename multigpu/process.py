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
from contextlib import contextmanager
from multiprocessing import resource_tracker

CONTEXT = multiprocessing.get_context("spawn")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)      # finish the step, save, end; batch systems send SIGUSR1
PR_SET_PDEATHSIG = 1                             # linux/prctl.h


def pipes_between(ranks):
    """Create a pipe between every two ranks; return {rank: {other: the Connection of rank to other}}."""
    pipes = {rank: {} for rank in ranks}
    for one, other in itertools.combinations(pipes, 2):
        pipes[one][other], pipes[other][one] = CONTEXT.Pipe()
    return pipes


def start(process, threads):
    """Start a process that uses `threads` OpenMP and BLAS threads, with SIGNALS blocked in it.

    The signals stay pending until the process has installed its handlers (take_signals), so that neither a Ctrl-C nor a
    SIGTERM to the process group can interrupt its imports.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()        # it ignores SIGINT and SIGTERM, and keeps SIGUSR1 blocked
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)        # starting the tracker has unblocked them
        with environment(OMP_NUM_THREADS=str(threads)):
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def environment(**variables):
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


def take_signals(on_terminate):
    """Install a child's signal handlers: SIGTERM calls on_terminate(number, frame), the parent handles the others."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_terminate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with_parent():
    """Have the kernel kill this process as soon as the parent's thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != multiprocessing.parent_process().pid:
        sys.exit(1)                              # the parent died before the prctl call


class Watch:
    """Calls on_death(key), from a thread, as soon as the other end of one of `pipes`, {key: Connection}, is closed.

    It works while this process computes, and with unread messages in the pipe.  Close it before an expected end of a
    peer.  The pipes must outlive it.
    """

    def __init__(self, pipes, on_death):
        self._keys = {pipe.fileno(): key for key, pipe in pipes.items()}
        self._on_death = on_death
        self._closing, self._close = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def _watch(self):
        poll = select.poll()
        poll.register(self._closing, select.POLLIN)
        for pipe in self._keys:
            poll.register(pipe, 0)               # no event is requested; poll always reports a hang-up
        ready = [pipe for pipe, _ in poll.poll()]
        if self._closing not in ready:
            self._on_death(self._keys[ready[0]])

    def close(self):
        """Stop watching; on_death is not called after this returns.  Further calls do nothing."""
        if self._close is not None:
            os.write(self._close, b".")
            self._thread.join()
            os.close(self._closing)
            os.close(self._close)
            self._close = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def end(process, grace):
    """Wait `grace` seconds for a process to end, then kill it; it has ended and is reaped on return."""
    process.join(grace)
    if process.exitcode is None:
        process.kill()
        process.join()


def how_it_ended(exitcode):
    """Describe an exit code, negative for the signal that killed the process, as the end of a sentence."""
    if exitcode >= 0:
        return f"ended with status {exitcode}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-exitcode, f'signal {-exitcode}')}"
