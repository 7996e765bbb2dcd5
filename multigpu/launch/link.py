"""The connection between a worker and its launcher.

The worker receives stop orders, and pipes to the replacement of a killed worker.  It sends failure reports.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from multigpu.launch.process import FORWARDED, parent_pid, set_signal_handlers


class Order(Enum):
    """Order from the launcher to a worker."""

    STOP = "finish the step, save, end"


class NewPipes(NamedTuple):
    """Launcher to worker: a peer has been replaced. A file descriptor for each of these ranks follows."""

    ranks: tuple[int, ...]


class Stage(Enum):
    """Worker to launcher: how far it is. Without this message the launcher replaces no worker."""

    STARTING = "does not hold the state of the training"
    TRAINING = "holds the state, and gives it to a replacement of another worker"
    ENDED = "does not need the other workers any more"


class Failed(NamedTuple):
    """Worker to launcher: the run has failed.

    Attributes:
        message: the reason.
        status: exit status of the run.
        caused_by_peer: the cause is the death of another worker, whose own report or exit status is more informative.
        curable: a restart of the run may succeed.
    """

    message: str
    status: int
    caused_by_peer: bool = False
    curable: bool = False


class LogOpened(NamedTuple):
    """Worker 0 to launcher: the folder of the run exists; path is its log file."""

    path: Path


class JobLink(ABC):
    """A worker's connection to whatever ends the job: its launcher, or in an MPI job the monitor."""

    @abstractmethod
    def stop_requested(self) -> bool:
        """Return whether to finish the step, save and end; called after each step."""

    @abstractmethod
    def stopping(self) -> bool:
        """Return the same at any time, while this worker waits; it does not count as progress."""

    @abstractmethod
    def report(self, message: str, status: int = 1, caused_by_peer: bool = False, curable: bool = True) -> None:
        """Report a failure, from any thread; this worker, and with most rules the whole job, ends within seconds.

        Args: see Failed. The defaults are those of a process that has died.
        """

    @abstractmethod
    def log_to(self, path: Path) -> None:
        """Name the log file of the run, for what ends the job; worker 0 calls it when the run's folder exists."""


class LauncherLink(JobLink):
    """The worker's end of the connection to the launcher.

    A thread reads from it.  If the launcher dies, the thread gets an EOF and ends this process at once, during any
    computation; the loader then ends as well.  Otherwise no process would be left to end them.  A SIGTERM to this
    process is forwarded to the launcher, because it is meant for the whole run.  A Ctrl-C reaches the launcher
    directly.

    Args:
        pipe: Connection to the launcher.
        first: whether this is the launcher's first worker, which is the one that reports the launcher's death.
    """

    def __init__(self, pipe: Connection, first: bool) -> None:
        self._pipe = pipe
        self._first = first
        self._launcher = parent_pid()
        self._stop = False
        self._pipes: Mapping[int, Connection] | None = None      # the newest that have not been used
        self._received = threading.Condition()
        self._send_lock = threading.Lock()
        set_signal_handlers(on_sigterm=self._forward_sigterm)
        threading.Thread(target=self._receive_orders, name="launcher link", daemon=True).start()

    def stop_requested(self) -> bool:
        return self._stop

    def stopping(self) -> bool:
        return self._stop

    def report(self, message: str, status: int = 1, caused_by_peer: bool = False, curable: bool = True) -> None:
        self._send(Failed(message, status, caused_by_peer, curable))

    def log_to(self, path: Path) -> None:
        self._send(LogOpened(path))

    def set_stage(self, stage: Stage) -> None:
        """Notify the launcher of the stage of this worker."""
        self._send(stage)

    def next_pipes(self) -> Mapping[int, Connection] | None:
        """Wait for new pipes, {rank: Connection} to each peer; None if a stop is requested instead."""
        with self._received:
            self._received.wait_for(lambda: self._pipes is not None or self._stop)
            pipes, self._pipes = self._pipes, None
            return pipes

    def _send(self, message: Failed | LogOpened | Stage) -> None:
        with self._send_lock, suppress(OSError):  # if the launcher is dead, this process is already ending
            self._pipe.send(message)

    def _forward_sigterm(self, number: int, frame: FrameType | None) -> None:
        os.kill(self._launcher, FORWARDED)     # not SIGTERM: it may be seconds late, and is no second request

    def _receive_orders(self) -> None:
        try:
            while True:
                order = self._pipe.recv()
                with self._received:
                    if isinstance(order, NewPipes):
                        self._pipes = {rank: Connection(recv_handle(self._pipe)) for rank in order.ranks}
                    else:
                        self._stop = True
                    self._received.notify()
        except (EOFError, OSError):
            self._end_process()

    def _end_process(self) -> None:
        """End this process now; the first worker prints the reason."""
        try:
            if self._first:
                line = f"the launcher (pid {self._launcher}) died; its workers end\n"
                os.write(2, line.encode())       # not sys.stderr, whose lock the main thread may hold
        finally:
            os._exit(1)


def send_pipes(pipe: Connection, pid: int, pipes: Mapping[int, Connection]) -> None:
    """Send a worker its new pipes, {rank: Connection}, and close them here.

    Args:
        pipe: the launcher's end of the connection to the worker.
        pid: process id of the worker.
    """
    with suppress(OSError):                      # the worker has just ended
        pipe.send(NewPipes(tuple(pipes)))
        for connection in pipes.values():
            send_handle(pipe, connection.fileno(), pid)
    close_all(pipes.values())


def close_all(pipes: Iterable[Connection]) -> None:
    """Close the pipes: a peer sees an EOF only when no process holds an open end."""
    for pipe in pipes:
        pipe.close()
