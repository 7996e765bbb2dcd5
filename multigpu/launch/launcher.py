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

import signal
from collections.abc import Collection, Iterable
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

from alexnet.config.schema import Config
from alexnet.native.console import say
from alexnet.native.main_module import UNGUARDED, unguarded_sentence
from alexnet.run.checkpoint_format import newest
from multigpu.launch.link import Failed
from multigpu.launch.process import SIGNALS, describe_exit
from multigpu.launch.restart import Restarts, after_restarts, log_restart, restarted
from multigpu.launch.signals import Signals, stop_notice
from multigpu.launch.workers import Worker, Workers, WorkFunction, request_stop

STOP_TIMEOUT = 2.0                               # seconds that workers get to stop after another has died
CAUSE_TIMEOUT = 1.0                              # seconds to wait for the death that a worker's failure is due to


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
    restarts = Restarts(config.max_restarts)
    with Signals() as signals:
        outcome = run_workers(config, entry, signals, restarts)
        while outcome.curable and restarts.left:
            if received := signals.pending():
                outcome = Outcome(128 + received, f"stopped by {received.name}", lost=True)
                break
            restarts.used += 1
            config = restarted(config, outcome.folder)
            log_restart(config, restarts.used, outcome.message or "")
            outcome = run_workers(config, entry, signals, restarts)
    if outcome.message:
        message = with_checkpoint(outcome, config)
        say(after_restarts(restarts.used, message) if outcome.curable else message)
    return outcome.status


def run_workers(config: Config, entry: WorkFunction | None, signals: Signals, restarts: Restarts) -> Outcome:
    """Start the workers and wait for their end; all have ended on return."""
    with Workers(entry, config, restarts) as workers:
        outcome = monitor(workers, signals)
        workers.end(outcome.timeout)
    return outcome._replace(folder=workers.folder)


def with_checkpoint(outcome: Outcome, config: Config) -> str:
    """Return the message of an Outcome; if steps are lost, it names the last checkpoint, if no worker has done so."""
    message = outcome.message or ""
    if not outcome.lost or "checkpoint" in message or config.run_name is None:   # rank 0 names a run started by hand
        return message
    saved = newest(outcome.folder or Path(config.output, config.run_name))
    return f"{message}; the last checkpoint is {saved}" if saved else message


def monitor(workers: Workers, signals: Signals) -> Outcome:
    """Wait until all workers have ended, one has failed, or a second signal arrives.

    A killed worker is replaced if the others can continue with a new one. A failure caused by another worker's death is
    held back for CAUSE_TIMEOUT seconds, until that death is detected and reported instead.
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
            if stop is None and (replacement := workers.replace(worker, failed)):
                running[running.index(worker)] = replacement
                continue
            curable = failed.curable and stop is None
            outcome = Outcome(failed.status, failed.message, lost=failed.status == 1, curable=curable)
            if not failed.caused_by_peer:
                return outcome
            held_back = held_back or outcome
            reported.append(worker)
        if late := workers.unneeded_replacement():
            return Outcome(late.status, late.message, curable=True)
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
    failures = [(worker, report) for worker in running if (report := worker.failure())]
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
