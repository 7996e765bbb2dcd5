"""The line between a worker and its launcher: an order to stop comes in, the reason of a failure goes out."""

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from multigpu.process import take_signals


class Order(Enum):
    """Launcher to worker."""

    STOP = "finish the step, save, end"


class Failed(NamedTuple):
    """Worker to launcher: the run cannot go on, and why; status is what the run should end with.

    follows  whether another worker's end is the reason, which that one or its own end will tell better
    """

    sentence: str
    status: int
    follows: bool = False


class Control:
    """The worker's end of the line.

    A thread listens to it.  When the launcher dies, which is an EOF, the thread ends this process at once,
    whatever it computes, and the loader follows: nobody is left to end them otherwise.
    A SIGTERM to this process is meant for the run and passed on to the launcher, which has a Ctrl-C anyway.

    first  whether this is the launcher's first worker, which is the one that says that the launcher died
    """

    def __init__(self, pipe, first):
        self._pipe, self._first = pipe, first
        self._launcher = multiprocessing.parent_process().pid
        self._stop = False
        self._sending = threading.Lock()
        take_signals(on_terminate=lambda number, frame: os.kill(self._launcher, signal.SIGTERM))
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def stop_requested(self):
        """Whether to finish the step, save and end."""
        return self._stop

    def report(self, sentence, status=1, follows=False):
        """Tell the launcher, from any thread, that the run cannot go on; it then ends every process within 5 s."""
        with self._sending, suppress(OSError):   # without a launcher this process is ending already
            self._pipe.send(Failed(sentence, status, follows))

    def _listen(self):
        try:
            while self._pipe.recv() is Order.STOP:
                self._stop = True
        except (EOFError, ConnectionError):
            self._leave()

    def _leave(self):
        """End this process now; one worker says why."""
        try:
            if self._first:
                line = f"the launcher (pid {self._launcher}) died; its workers end\n"
                os.write(2, line.encode())       # not sys.stderr, whose lock the main thread may hold
        finally:
            os._exit(1)
