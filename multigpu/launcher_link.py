"""The connection between a worker and its launcher: the worker receives stop orders and sends failure reports."""

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from multigpu.process import take_signals


class Order(Enum):
    """Order from the launcher to a worker."""

    STOP = "finish the step, save, end"


class Failed(NamedTuple):
    """Worker to launcher: the run has failed, with the reason and the exit status of the run.

    follows: the cause is the death of another worker, whose own report or exit status is more informative.
    """

    sentence: str
    status: int
    follows: bool = False


class LauncherLink:
    """The worker's end of the connection to the launcher.

    A thread reads from it.  If the launcher dies, the thread gets an EOF and ends this process at once, during any
    computation; the loader then ends as well.  Otherwise no process would be left to end them.  A SIGTERM to this
    process is forwarded to the launcher, because it is meant for the whole run.  A Ctrl-C reaches the launcher
    directly.

    Args:
        pipe: Connection to the launcher.
        first: whether this is the launcher's first worker, which is the one that reports the launcher's death.
    """

    def __init__(self, pipe, first):
        self._pipe, self._first = pipe, first
        self._launcher = multiprocessing.parent_process().pid
        self._stop = False
        self._sending = threading.Lock()
        take_signals(on_terminate=lambda number, frame: os.kill(self._launcher, signal.SIGTERM))
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def stop_requested(self):
        """Return whether to finish the step, save and end."""
        return self._stop

    def report(self, sentence, status=1, follows=False):
        """Report a failure to the launcher, from any thread; the launcher then ends every process within 5 s."""
        with self._sending, suppress(OSError):   # if the launcher is dead, this process is already ending
            self._pipe.send(Failed(sentence, status, follows))

    def _listen(self):
        try:
            while self._pipe.recv() is Order.STOP:
                self._stop = True
        except (EOFError, ConnectionError):
            self._leave()

    def _leave(self):
        """End this process now; the first worker prints the reason."""
        try:
            if self._first:
                line = f"the launcher (pid {self._launcher}) died; its workers end\n"
                os.write(2, line.encode())       # not sys.stderr, whose lock the main thread may hold
        finally:
            os._exit(1)
