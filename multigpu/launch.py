"""The launcher: starts a worker for each device, watches them all, and ends them all.

    all workers end by themselves   status 0
    SIGINT, SIGTERM or SIGUSR1      every worker finishes its step, saves and ends; status 130, 143 or 138
    another one                     every process is killed at once; the same status
    a worker dies or fails          the others get GRACE seconds to stop, then are killed; status 1, or 2 for a
                                    setting or a file that cannot be; one sentence says who was first, and how
    the launcher itself dies        its workers see an EOF and end, and their loaders with them

Between every two workers lies a pipe, of which nobody but they holds an end.  A worker that was started by hand is the
only one of its launcher, and meets the others by itself.
"""

import math
import os
import pkgutil
import signal
import socket
import sys
import time
from contextlib import suppress
from multiprocessing import connection
from typing import Any, NamedTuple

from alexnet.checkpoint import CheckpointError
from alexnet.config import ConfigError
from alexnet.cores import cores
from alexnet.data import DataError
from alexnet.training import Diverged
from multigpu.control import Control, Order
from multigpu.device import DeviceError
from multigpu.loader import LoaderDied
from multigpu.meeting import Stopped, meet
from multigpu.partners import OutOfStep, PartnerDied, Partners
from multigpu.process import CONTEXT, SIGNALS, end, how_it_ended, pipes_between, start

GRACE = 2.0                                      # seconds that workers get to stop after another has died
SOON = 1.0                                       # seconds within which the worker that others miss is seen dead
TWICE = 1.0                                      # seconds within which signals are one: timeout(1) sends its own twice


class Place(NamedTuple):
    """Which of the workers one is, and where it computes."""

    rank: int
    size: int
    device: str


class Worker(NamedTuple):
    """A worker process as the launcher sees it."""

    name: str
    process: Any
    pipe: connection.Connection


class Ending(NamedTuple):
    """How a run ended, or has to end: exit status, a sentence if there is something to say, seconds left to workers."""

    status: int
    sentence: str | None = None
    grace: float = GRACE


class Failure(NamedTuple):
    """A worker's failure, as the ending that it makes; follows: another worker's end is the reason, and may be seen."""

    worker: Worker
    ending: Ending
    follows: bool = False


def launch(config, entry="multigpu.worker:work"):
    """Run one worker for each of config.devices until they end; returns the exit status.

    entry  "module:function", called in each worker as function(config, device, control, partners); by name, so that
           only the workers import what it needs
    Settings rank, size and device ask for this one worker alone; others come from launchers in other terminals.
    Call it in the main thread: it takes SIGNALS while it runs.
    """
    workers = []
    with Signals() as signals:
        try:
            for place, pipes in places(config):
                workers.append(start_worker(entry, config, place, pipes))
            ending = watch(workers, signals)
            end_all(workers, ending.grace)
        finally:
            end_all(workers, 0)
    if ending.sentence:
        print(ending.sentence, file=sys.stderr, flush=True)
    return ending.status


def places(config):
    """The (Place, pipes) of each worker to start; pipes is None for one that was started by hand."""
    if config.rank is not None:
        return [(Place(config.rank, config.size, config.device), None)]
    size = len(config.devices)
    pipes = pipes_between(range(size))
    return [(Place(rank, size, device), pipes[rank]) for rank, device in enumerate(config.devices)]


def start_worker(entry, config, place, pipes):
    """A started Worker; its threads are its share of the cores, unless OMP_NUM_THREADS says otherwise."""
    pipe, theirs = CONTEXT.Pipe()
    arguments = entry, config, place, theirs, pipes
    process = CONTEXT.Process(target=run_worker, args=arguments, name=f"worker {place.rank}")
    start(process, os.environ.get("OMP_NUM_THREADS") or max(1, cores() // place.size))
    for end_of_worker in (theirs, *(pipes or {}).values()):
        end_of_worker.close()                    # else its death would never be an EOF, neither here nor to the others
    return Worker(f"worker {place.rank} (pid {process.pid})", process, pipe)


def run_worker(entry, config, place, pipe, pipes):
    """Entry point of a worker process: errors that say all in their sentence go to the launcher without a traceback."""
    control = Control(pipe, first=place.rank == 0 or pipes is None)
    try:
        if pipes is None:
            config, pipes = meet(config, place, control.stop_requested)
        pkgutil.resolve_name(entry)(config, place.device, control, Partners(place.rank, pipes))
    except (CheckpointError, ConfigError, DataError, DeviceError) as error:
        control.report(str(error), status=2)
        sys.exit(2)
    except (LoaderDied, Diverged, OutOfStep) as error:
        control.report(str(error))
        sys.exit(1)
    except PartnerDied as error:
        control.report(str(error), follows=True)
        sys.exit(1)
    except Stopped:                              # while it waited for the others; nothing is there to save
        return


def watch(workers, signals):
    """Wait until every worker has ended, or one has failed, or a second signal came; returns the Ending.

    A failure that follows from another worker's end waits SOON seconds for that to be seen, for it says who was first.
    """
    running, stop, follows, excused = list(workers), None, None, []
    while running:
        lines = [worker.pipe for worker in running if not worker.pipe.closed]
        wanted = [signals, *lines, *(worker.process.sentinel for worker in running)]
        ready = connection.wait(wanted, SOON if follows else None)
        if not ready:
            break
        if signals in ready and (taken := signals.take()):
            if stop is not None:
                return Ending(128 + taken, f"killed by a second {taken.name}, without saving", grace=0)
            stop = taken
            ask_to_stop(running)
        failure = first_failure(running, ready, excused)
        if failure and not failure.follows:
            return failure.ending
        if failure:
            follows = follows or failure.ending
            excused.append(failure.worker)       # it will end with a status, but may have more to say before
        running = [worker for worker in running if worker.process.sentinel not in ready]
    if follows:
        return follows
    return Ending(0) if stop is None else Ending(128 + stop, f"stopped by {stop.name}")


def first_failure(running, ready, excused=()):
    """The Failure of the first worker that failed, or None; how the excused ones end says nothing new.

    Of those seen at once one killed by a signal comes first: what the others report follows from it.
    """
    dead = [worker for worker in running if worker.process.sentinel in ready]
    for worker in dead:
        worker.process.join()
    for worker in dead:
        if worker.process.exitcode < 0:
            return Failure(worker, Ending(1, f"{worker.name} {how_it_ended(worker.process.exitcode)}"))
    heard = [(worker, failed) for worker in running if (failed := heard_from(worker))]
    failures = [
        Failure(worker, Ending(failed.status, f"{worker.name}: {failed.sentence}"), failed.follows)
        for worker, failed in heard
    ]
    told = [*excused, *(worker for worker, _ in heard)]
    failures += [
        Failure(worker, Ending(1, f"{worker.name} {how_it_ended(worker.process.exitcode)}"))
        for worker in dead if worker.process.exitcode > 0 and worker not in told
    ]
    return min(failures, key=lambda failure: failure.follows, default=None)


def heard_from(worker):
    """What the worker has Failed with, its own reason before another's end, or None; closes the line at its end."""
    said = []
    try:
        while not worker.pipe.closed and worker.pipe.poll():
            said.append(worker.pipe.recv())
    except (EOFError, ConnectionError):
        worker.pipe.close()
    return min(said, key=lambda failed: failed.follows, default=None)


def ask_to_stop(workers):
    for worker in workers:
        with suppress(OSError):                  # it has just ended: there is nothing to ask
            worker.pipe.send(Order.STOP)


def end_all(workers, grace):
    """Ask every worker to stop and kill those that have not after `grace` seconds; none is left on return."""
    ask_to_stop(workers)
    deadline = time.monotonic() + grace
    for worker in workers:
        end(worker.process, max(0, deadline - time.monotonic()))


class Signals:
    """SIGNALS as something to wait for together with processes: a socket that they are written to."""

    def __enter__(self):
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._taken = -math.inf
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        return self

    def __exit__(self, *error):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def fileno(self):
        return self._reader.fileno()

    def take(self):
        """The signal that has come; None when it is not one of SIGNALS, or follows another within TWICE seconds."""
        number, now = self._reader.recv(1)[0], time.monotonic()
        if number not in SIGNALS or now - self._taken < TWICE:
            return None
        self._taken = now
        return signal.Signals(number)
