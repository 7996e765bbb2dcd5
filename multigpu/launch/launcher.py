"""The launcher: starts one worker per device, monitors the workers and ends them.

    all workers end normally        status 0
    SIGINT, SIGTERM or SIGUSR1      every worker finishes its step, saves and ends; status 130, 143 or 138
    SIGHUP, unless nohup ignores it the same, when the terminal is closed; status 129
    a second signal                 the launcher kills every process at once; same status
    a worker dies or fails          the others get STOP_TIMEOUT seconds to stop, then are killed; status 1, or 2 for
                                    an invalid setting or file; one message names the first worker and its error
    the launcher itself dies        its workers see an EOF and end, and so do their loaders

After a failure that a restart can cure, the launcher starts the workers again, at most max_restarts times: see
multigpu.launch.restart.

A pipe connects every two workers; only these two hold its ends.  A worker started by hand is the only worker of its
launcher and finds the others through multigpu.launch.rendezvous.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from alexnet.config.schema import Config, ConfigError
from alexnet.data.dataset import DataError, ReadError
from alexnet.native.atomic import reason
from alexnet.native.console import protect, say
from alexnet.native.cores import cores
from alexnet.native.main_module import UNGUARDED, unguarded_sentence
from alexnet.run.checkpoint_format import CheckpointError, newest
from alexnet.training.loop import Diverged, InputLost
from multigpu.communicator import Communicator, DesyncError, PeerDied, PipeCommunicator
from multigpu.device import DeviceError
from multigpu.launch.link import Failed, JobLink, LauncherLink, LogOpened, Order
from multigpu.launch.process import CONTEXT, SIGNALS, describe_exit, end, pipes_between, start
from multigpu.launch.rendezvous import Pipes, Placement, Stopped, rendezvous
from multigpu.launch.restart import after_restarts, log_restart, restarted
from multigpu.launch.signals import Signals, stop_notice

STOP_TIMEOUT = 2.0                               # seconds that workers get to stop after another has died
CAUSE_TIMEOUT = 1.0                              # seconds to wait for the death that a worker's failure is due to

WorkFunction = Callable[[Config, str, JobLink, Communicator], None]      # called as multigpu.worker.work


@dataclass(eq=False)
class Worker:
    """A worker process as seen by the launcher. folder: that of the run, once worker 0 has created it."""

    name: str
    process: BaseProcess
    pipe: Connection
    folder: Path | None = None


class Outcome(NamedTuple):
    """How a run ends: exit status, optional message, and seconds until the remaining workers are killed.

    lost: whether the steps since the last checkpoint are lost.
    curable: whether a restart may succeed.
    folder: of the run, if it exists.
    """

    status: int
    message: str | None = None
    timeout: float = STOP_TIMEOUT
    lost: bool = False
    curable: bool = False
    folder: Path | None = None


def launch(config: Config, entry: WorkFunction | None = None) -> int:
    """Run one worker for each of config.devices until they end.

    Call it in the main thread, because it handles signals while it runs.  With the settings rank, size and device it
    starts only this worker; launchers in other terminals start the others.

    Args:
        config: the settings.
        entry: the function that each worker runs; None: multigpu.worker.work.

    Returns:
        The exit status.
    """
    restarts = 0
    with Signals() as signals:
        outcome = run_workers(config, entry, signals)
        while outcome.curable and restarts < config.max_restarts:
            if received := signals.pending():
                outcome = Outcome(128 + received, f"stopped by {received.name}", lost=True)
                break
            restarts += 1
            config = restarted(config, outcome.folder)
            log_restart(config, restarts, outcome.message or "")
            outcome = run_workers(config, entry, signals)
    if outcome.message:
        message = with_checkpoint(outcome, config)
        say(after_restarts(restarts, message) if outcome.curable else message)
    return outcome.status


def run_workers(config: Config, entry: WorkFunction | None, signals: Signals) -> Outcome:
    """Start the workers and wait for their end; all have ended on return."""
    workers: list[Worker] = []
    try:
        for placement, pipes in placements(config):
            workers.append(start_worker(entry, config, placement, pipes))
        outcome = monitor(workers, signals)
        end_all(workers, outcome.timeout)
    finally:
        end_all(workers, 0)
    for worker in workers:
        receive_failure(worker)                  # what worker 0 has sent just before its end names the folder
        worker.pipe.close()
    return outcome._replace(folder=next((worker.folder for worker in workers if worker.folder), None))


def with_checkpoint(outcome: Outcome, config: Config) -> str:
    """Return the message of an Outcome; if steps are lost, it names the last checkpoint, if no worker has done so."""
    message = outcome.message or ""
    if not outcome.lost or "checkpoint" in message or config.run_name is None:   # rank 0 names a run started by hand
        return message
    saved = newest(outcome.folder or Path(config.output, config.run_name))
    return f"{message}; the last checkpoint is {saved}" if saved else message


def placements(config: Config) -> list[tuple[Placement, Pipes | None]]:
    """Return the (Placement, pipes to its peers) of each worker to start; pipes is None for one started by hand."""
    if config.rank is not None:
        assert config.size is not None and config.device is not None       # these three settings come together
        return [(Placement(config.rank, config.size, config.device), None)]
    size = len(config.devices)
    pipes = pipes_between(range(size))
    return [(Placement(rank, size, device), pipes[rank]) for rank, device in enumerate(config.devices)]


def start_worker(entry: WorkFunction | None, config: Config, placement: Placement, pipes: Pipes | None) -> Worker:
    """Start a worker. It gets its share of the cores as threads unless OMP_NUM_THREADS is set."""
    pipe, pipe_of_worker = CONTEXT.Pipe()
    arguments = entry, config, placement, pipe_of_worker, pipes
    process = CONTEXT.Process(target=run_worker, args=arguments, name=f"worker {placement.rank}")
    start(process, os.environ.get("OMP_NUM_THREADS") or max(1, cores() // placement.size))
    for end_of_worker in (pipe_of_worker, *(pipes or {}).values()):
        end_of_worker.close()                    # otherwise neither launcher nor peers would see an EOF at its death
    return Worker(f"worker {placement.rank} (pid {process.pid})", process, pipe)


def run_worker(
    entry: WorkFunction | None, config: Config, placement: Placement, pipe: Connection, pipes: Pipes | None
) -> None:
    """Entry point of a worker process. Expected errors go to the launcher as a message, without a traceback."""
    protect()
    link = LauncherLink(pipe, first=placement.rank == 0 or pipes is None)
    try:
        if pipes is None:
            config, pipes = rendezvous(config, placement, link.stop_requested)
        if entry is None:
            # imported here because it imports PyTensor, which the launcher does not need
            from multigpu.worker import work

            entry = work
        entry(config, placement.device, link, PipeCommunicator(placement.rank, pipes))
    except (CheckpointError, ConfigError, DataError, DeviceError) as error:
        link.report(str(error), status=2, curable=isinstance(error, ReadError))
        sys.exit(2)
    except (InputLost, Diverged, DesyncError) as error:
        link.report(str(error), curable=isinstance(error, InputLost))
        sys.exit(1)
    except PeerDied as error:
        link.report(str(error), caused_by_peer=True)
        sys.exit(1)
    except OSError as error:                     # of the run's own files, for example a full disk
        link.report(reason(error), status=2, curable=False)
        sys.exit(2)
    except Stopped:                              # stopped during the rendezvous; there is nothing to save
        return


def monitor(workers: Sequence[Worker], signals: Signals) -> Outcome:
    """Wait until all workers have ended, one has failed, or a second signal arrives.

    A failure caused by another worker's death is held back for CAUSE_TIMEOUT seconds, until that death is detected and
    reported instead.
    """
    running = list(workers)
    stop: signal.Signals | None = None
    held_back: Outcome | None = None
    reported: list[Worker] = []                  # will exit with an error status that is already explained
    while running:
        pipes = [worker.pipe for worker in running if not worker.pipe.closed]
        sentinels = [worker.process.sentinel for worker in running]
        ready = connection.wait([signals.reader, *pipes, *sentinels], CAUSE_TIMEOUT if held_back else None)
        if not ready:
            break
        if signals.reader in ready and (received := signals.receive()):
            if stop is not None:
                message = f"killed by a second {received.name}, without saving"
                return Outcome(128 + received, message, timeout=0, lost=True)
            stop = received
            request_stop(running)
            say(stop_notice(received))
            signals.handled()
        if failure := first_failure(running, ready, reported):
            worker, failed = failure
            curable = failed.curable and stop is None
            outcome = Outcome(failed.status, failed.message, lost=failed.status == 1, curable=curable)
            if not failed.caused_by_peer:
                return outcome
            held_back = held_back or outcome
            reported.append(worker)
        running = [worker for worker in running if worker.process.sentinel not in ready]
    if held_back:
        return held_back
    return Outcome(0) if stop is None else Outcome(128 + stop, f"stopped by {stop.name}")


def first_failure(
    running: Iterable[Worker], ready: Collection[object], reported: Iterable[Worker]
) -> tuple[Worker, Failed] | None:
    """Return the first worker that failed, and how, or None.

    If several workers fail at once, one killed by a signal takes precedence, because it caused the other failures.

    Args:
        running: the workers that had not ended before.
        ready: result of connection.wait.
        reported: workers whose exit status is not a new failure.
    """
    ended = [worker for worker in running if worker.process.sentinel in ready]
    for worker in ended:
        worker.process.join()
    for worker in ended:
        if (worker.process.exitcode or 0) < 0:
            return worker, exit_failure(worker)
    failures = [(worker, report) for worker in running if (report := receive_failure(worker))]
    explained = [*reported, *(worker for worker, _ in failures)]
    failed = [worker for worker in ended if worker.process.exitcode and worker not in explained]
    failures += [(worker, exit_failure(worker)) for worker in failed]
    return min(failures, key=lambda failure: failure[1].caused_by_peer, default=None)


def exit_failure(worker: Worker) -> Failed:
    """Return the failure of a worker that has ended without a report."""
    if worker.process.exitcode == UNGUARDED:
        return Failed(unguarded_sentence(), status=2)
    killed_by = -(worker.process.exitcode or 0)
    curable = killed_by > 0 and killed_by not in SIGNALS         # a status is that of an error, which would recur
    return Failed(f"{worker.name} {describe_exit(worker.process.exitcode)}", status=1, curable=curable)


def receive_failure(worker: Worker) -> Failed | None:
    """Return the worker's report with its name in the message, or None; close the pipe at EOF.

    The worker's own error takes precedence over a report of another worker's death.
    """
    reports: list[Failed] = []
    try:
        while not worker.pipe.closed and worker.pipe.poll():
            message = worker.pipe.recv()
            if isinstance(message, LogOpened):
                worker.folder = message.path.parent
            else:
                reports.append(message)
    except (EOFError, ConnectionError):
        worker.pipe.close()
    if not reports:
        return None
    report = min(reports, key=lambda report: report.caused_by_peer)
    return report._replace(message=f"{worker.name}: {report.message}")


def request_stop(workers: Iterable[Worker]) -> None:
    """Ask workers to finish their step, save and end."""
    for worker in workers:
        with suppress(OSError):                  # the worker has just ended
            worker.pipe.send(Order.STOP)


def end_all(workers: Sequence[Worker], timeout: float) -> None:
    """Ask every worker to stop and kill those still running after `timeout` seconds; all have ended on return."""
    request_stop(workers)
    deadline = time.monotonic() + timeout
    for worker in workers:
        end(worker.process, max(0, deadline - time.monotonic()))
