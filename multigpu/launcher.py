"""The launcher: starts one worker per device, monitors the workers and ends them.

    all workers end normally        status 0
    SIGINT, SIGTERM or SIGUSR1      every worker finishes its step, saves and ends; status 130, 143 or 138
    a second signal                 the launcher kills every process at once; same status
    a worker dies or fails          the others get GRACE seconds to stop, then are killed; status 1, or 2 for an
                                    invalid setting or file; one message names the first worker and its error
    the launcher itself dies        its workers see an EOF and end, and so do their loaders

A pipe connects every two workers; only these two hold its ends.  A worker started by hand is the only worker of its
launcher and finds the others through multigpu.rendezvous.
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

from alexnet.config.schema import ConfigError
from alexnet.data.dataset import DataError
from alexnet.native.cores import cores
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.loop import Diverged
from multigpu.communicator import DesyncError, PeerDied, PipeCommunicator
from multigpu.device import DeviceError
from multigpu.launcher_link import LauncherLink, Order
from multigpu.loader import LoaderDied
from multigpu.process import CONTEXT, SIGNALS, end, how_it_ended, pipes_between, start
from multigpu.rendezvous import Stopped, rendezvous

GRACE = 2.0                                      # seconds that workers get to stop after another has died
SOON = 1.0                                       # seconds to wait for the death that a peer has reported
TWICE = 1.0                                      # seconds within which signals count as one: timeout(1) sends two


class Placement(NamedTuple):
    """The rank of a worker, the number of workers, and the device of the worker."""

    rank: int
    size: int
    device: str


class Worker(NamedTuple):
    """A worker process as seen by the launcher."""

    name: str
    process: Any
    pipe: connection.Connection


class Ending(NamedTuple):
    """How a run ends: exit status, optional message, and seconds until the workers are killed."""

    status: int
    sentence: str | None = None
    grace: float = GRACE


class Failure(NamedTuple):
    """A worker's failure and the resulting Ending. follows: the cause is the death of another worker."""

    worker: Worker
    ending: Ending
    follows: bool = False


def launch(config, entry="multigpu.worker:work"):
    """Run one worker for each of config.devices until they end.

    Call it in the main thread, because it handles SIGNALS while it runs.  With the settings rank, size and device it
    starts only this worker; launchers in other terminals start the others.

    Args:
        config: the settings.
        entry: "module:function", called in each worker as function(config, device, control, comm). It is a name,
            so that only the workers import what the function needs.

    Returns:
        The exit status.
    """
    workers = []
    with Signals() as signals:
        try:
            for place, pipes in placements(config):
                workers.append(start_worker(entry, config, place, pipes))
            ending = watch(workers, signals)
            end_all(workers, ending.grace)
        finally:
            end_all(workers, 0)
    if ending.sentence:
        print(ending.sentence, file=sys.stderr, flush=True)
    return ending.status


def placements(config):
    """Return the (Placement, pipes) of each worker to start; pipes is None for a worker started by hand."""
    if config.rank is not None:
        return [(Placement(config.rank, config.size, config.device), None)]
    size = len(config.devices)
    pipes = pipes_between(range(size))
    return [(Placement(rank, size, device), pipes[rank]) for rank, device in enumerate(config.devices)]


def start_worker(entry, config, place, pipes):
    """Start a worker. It gets its share of the cores as threads unless OMP_NUM_THREADS is set."""
    pipe, theirs = CONTEXT.Pipe()
    arguments = entry, config, place, theirs, pipes
    process = CONTEXT.Process(target=run_worker, args=arguments, name=f"worker {place.rank}")
    start(process, os.environ.get("OMP_NUM_THREADS") or max(1, cores() // place.size))
    for end_of_worker in (theirs, *(pipes or {}).values()):
        end_of_worker.close()                    # otherwise neither launcher nor peers would see an EOF at its death
    return Worker(f"worker {place.rank} (pid {process.pid})", process, pipe)


def run_worker(entry, config, place, pipe, pipes):
    """Entry point of a worker process. Expected errors go to the launcher as a message, without a traceback."""
    control = LauncherLink(pipe, first=place.rank == 0 or pipes is None)
    try:
        if pipes is None:
            config, pipes = rendezvous(config, place, control.stop_requested)
        pkgutil.resolve_name(entry)(config, place.device, control, PipeCommunicator(place.rank, pipes))
    except (CheckpointError, ConfigError, DataError, DeviceError) as error:
        control.report(str(error), status=2)
        sys.exit(2)
    except (LoaderDied, Diverged, DesyncError) as error:
        control.report(str(error))
        sys.exit(1)
    except PeerDied as error:
        control.report(str(error), follows=True)
        sys.exit(1)
    except Stopped:                              # stopped during the rendezvous; there is nothing to save
        return


def watch(workers, signals):
    """Wait until all workers have ended, one has failed, or a second signal arrives; return the Ending.

    A failure caused by another worker's death is held back for SOON seconds, until that death is detected and reported
    instead.
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
            excused.append(failure.worker)       # will exit with an error status; its message may still arrive
        running = [worker for worker in running if worker.process.sentinel not in ready]
    if follows:
        return follows
    return Ending(0) if stop is None else Ending(128 + stop, f"stopped by {stop.name}")


def first_failure(running, ready, excused=()):
    """Return the Failure of the first worker that failed, or None; the exit statuses of excused workers are ignored.

    If several workers fail at once, one killed by a signal takes precedence, because it caused the other failures.
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
    """Return the worker's Failed message, or None; close the pipe at EOF.

    The worker's own error takes precedence over a report of another worker's death.
    """
    said = []
    try:
        while not worker.pipe.closed and worker.pipe.poll():
            said.append(worker.pipe.recv())
    except (EOFError, ConnectionError):
        worker.pipe.close()
    return min(said, key=lambda failed: failed.follows, default=None)


def ask_to_stop(workers):
    for worker in workers:
        with suppress(OSError):                  # the worker has just ended
            worker.pipe.send(Order.STOP)


def end_all(workers, grace):
    """Ask every worker to stop and kill those still running after `grace` seconds; all have ended on return."""
    ask_to_stop(workers)
    deadline = time.monotonic() + grace
    for worker in workers:
        end(worker.process, max(0, deadline - time.monotonic()))


class Signals:
    """Receives SIGNALS through a socket, so that connection.wait can wait for them together with processes."""

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
        """Return the received signal, or None if it is not in SIGNALS or follows another one within TWICE seconds."""
        number, now = self._reader.recv(1)[0], time.monotonic()
        if number not in SIGNALS or now - self._taken < TWICE:
            return None
        self._taken = now
        return signal.Signals(number)
