"""Worker processes: their start and end, their messages to the launcher, and the replacement of a killed one."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

from alexnet.config.schema import Config, ConfigError
from alexnet.data.dataset import DataError, ReadError
from alexnet.native.atomic import reason
from alexnet.native.console import protect
from alexnet.native.cores import cores
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.loop import Diverged, InputLost
from multigpu.communicator import Communicator, DesyncError, PeerDied, PipeCommunicator, StateDamaged
from multigpu.device import DeviceError
from multigpu.launch.clock import TimeLimit
from multigpu.launch.link import Failed, JobLink, LauncherLink, LogOpened, Order, Stage, close_all, send_pipes
from multigpu.launch.process import CONTEXT, end_within, pipes_between, start
from multigpu.launch.rendezvous import Pipes, Placement, Stopped, rendezvous
from multigpu.launch.restart import Restarts, log_restart, restarted

WorkFunction = Callable[[Config, str, JobLink, Communicator], None]      # called as multigpu.worker.work


@dataclass(eq=False)
class Worker:
    """A worker process as seen by the launcher.

    folder: that of the run, once worker 0 has created it.
    stage: how far it is.
    replaced: of a replacement, the failure of the worker before it.
    """

    process: BaseProcess
    pipe: Connection
    placement: Placement
    folder: Path | None = None
    stage: Stage = Stage.STARTING
    replaced: Failed | None = None
    _reports: list[Failed] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"worker {self.placement.rank} (pid {self.process.pid})"

    @property
    def killed(self) -> bool:
        """Whether a signal has ended the process."""
        return (self.process.exitcode or 0) < 0

    def receive(self) -> None:
        """Read the messages that have arrived; close the pipe at EOF."""
        try:
            while not self.pipe.closed and self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, LogOpened):
                    self.folder = message.path.parent
                elif isinstance(message, Stage):
                    self.stage = message
                else:
                    self._reports.append(message)
        except (EOFError, ConnectionError):
            self.pipe.close()

    def failure(self) -> Failed | None:
        """Return the worker's new report with its name in the message, or None.

        The worker's own error takes precedence over a report of another worker's death.
        """
        self.receive()
        reports, self._reports = self._reports, []
        report = min(reports, key=lambda report: report.caused_by_peer, default=None)
        return report and report._replace(message=f"{self.name}: {report.message}")


def placements(config: Config) -> list[tuple[Placement, Pipes | None]]:
    """Return the (Placement, pipes to its peers) of each worker to start; pipes is None for one started by hand."""
    if config.rank is not None:
        assert config.size is not None and config.device is not None       # these three settings come together
        return [(Placement(config.rank, config.size, config.device), None)]
    size = len(config.devices)
    pipes = pipes_between(range(size))
    return [(Placement(rank, size, device), pipes[rank]) for rank, device in enumerate(config.devices)]


def start_worker(
    entry: WorkFunction | None, config: Config, placement: Placement, pipes: Pipes | None, replaces: bool = False
) -> Worker:
    """Start a worker. It gets its share of the cores as threads unless OMP_NUM_THREADS is set."""
    pipe, pipe_of_worker = CONTEXT.Pipe()
    arguments = entry, config, placement, pipe_of_worker, pipes, replaces
    process = CONTEXT.Process(target=run_worker, args=arguments, name=f"worker {placement.rank}")
    start(process, os.environ.get("OMP_NUM_THREADS") or max(1, cores() // placement.size))
    close_all([pipe_of_worker, *(pipes or {}).values()])
    return Worker(process, pipe, placement)


def run_worker(
    entry: WorkFunction | None, config: Config, placement: Placement, pipe: Connection, pipes: Pipes | None,
    replaces: bool,
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
        recovery = link if config.max_restarts and pipes else None
        entry(config, placement.device, link, PipeCommunicator(placement.rank, pipes, recovery, replaces))
    except (CheckpointError, ConfigError, DataError, DeviceError) as error:
        link.report(str(error), status=2, curable=isinstance(error, ReadError))
        sys.exit(2)
    except (InputLost, Diverged, DesyncError, StateDamaged) as error:
        link.report(str(error), curable=isinstance(error, InputLost | StateDamaged))
        sys.exit(1)
    except PeerDied as error:
        link.report(str(error), caused_by_peer=True)
        sys.exit(1)
    except OSError as error:                     # of the run's own files, for example a full disk
        link.report(reason(error), status=2, curable=False)
        sys.exit(2)
    except Stopped:                              # stopped during the rendezvous; there is nothing to save
        return


class Workers:
    """The workers of one start of a run. As a context manager it kills those that still run at its end.

    Args:
        entry: see multigpu.launch.launcher.launch.
        restarts: those of the run so far.
    """

    def __init__(self, entry: WorkFunction | None, config: Config, restarts: Restarts):
        self._entry = entry
        self._config = config
        self._restarts = restarts
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        try:
            for placement, pipes in placements(self._config):
                self._workers.append(start_worker(self._entry, self._config, placement, pipes))
        except BaseException:
            self.end(0)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end(0)
        for worker in self._workers:
            worker.receive()                     # what worker 0 has sent just before its end names the folder
            worker.pipe.close()

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers)

    @property
    def folder(self) -> Path | None:
        """The folder of the run, if it exists."""
        return next((worker.folder for worker in self._workers if worker.folder), None)

    def end(self, timeout: float) -> None:
        """Ask every worker to stop and kill those still running after `timeout` seconds; all have ended on return."""
        request_stop(self._workers)
        limit = TimeLimit(timeout)
        for worker in self._workers:
            end_within(worker.process, limit)

    def replace(self, worker: Worker, failed: Failed) -> Worker | None:
        """Start a replacement of a worker that was killed, and connect it with the others; see ElasticBsp.

        Returns:
            The new worker, or None if the others cannot continue with one, or no restart is left.
        """
        others = [other for other in self._workers if other is not worker]
        for other in self._workers:
            other.receive()
        alive = [other for other in others if not other.killed]
        holders = [other for other in alive if other.stage is Stage.TRAINING]
        ended = [other for other in alive if other.stage is Stage.ENDED or other.process.exitcode is not None]
        if not worker.killed or not failed.curable or not holders or ended or not self._restarts.left:
            return None
        self._restarts.used += 1
        config = restarted(self._config, self.folder)
        log_restart(config, self._restarts.used, failed.message, worker.placement.rank)
        pipes = pipes_between(range(worker.placement.size))
        new = start_worker(self._entry, config, worker.placement, pipes.pop(worker.placement.rank), replaces=True)
        new.folder = worker.folder
        new.replaced = failed
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = new
        for other in others:
            send_pipes(other.pipe, other.process.pid or 0, pipes[other.placement.rank])
        return new

    def unneeded_replacement(self) -> Failed | None:
        """Return the failure of a worker whose replacement is too late, because another worker has ended; or None."""
        late = [worker for worker in self._workers if worker.replaced and worker.stage is Stage.STARTING]
        if not late or all(worker.stage is not Stage.ENDED for worker in self._workers):
            return None
        self._restarts.used -= 1                 # the restart of all workers takes its place
        return late[0].replaced


def request_stop(workers: Iterable[Worker]) -> None:
    """Ask workers to finish their step, save and end."""
    for worker in workers:
        with suppress(OSError):                  # the worker has just ended
            worker.pipe.send(Order.STOP)


