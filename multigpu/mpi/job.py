"""One rank of an MPI job: the counterpart of multigpu.launch.launcher for ranks that mpiexec starts.

    mpiexec -n 4 python -m mpi4py train.py rule=bsp exchange=asa16          (also works without `-m mpi4py`)

Rank 0 resolves the settings, prints and saves.  It starts the monitor of the job (multigpu.failure).

| event                                          | effect                                    | status        |
|------------------------------------------------|-------------------------------------------|---------------|
| all ranks end normally                         |                                           | 0             |
| invalid settings or files                      | one message                               | 2             |
| SIGINT, SIGTERM or SIGUSR1 to any rank         | all finish the same step, save and end    | 130, 143, 138 |
| SIGHUP, unless it is ignored, to any rank      | the same; but it ends mpiexec: use nohup  | 129           |
| - again, a second later                        | the job is ended at once                  | 130, 143, 138 |
| a rank dies, fails or hangs                    | one message names it; the job is ended    | not 0         |
| mpiexec or a hydra_pmi_proxy of it is killed   | ranks and loaders are killed              |               |
| elastic: a client comes late                   | it joins with the server's weights        | 0             |
| elastic: such a signal to a client             | it pushes its updates and leaves          | 0             |
| elastic: a client or its loader dies, or hangs | one message names it; the others continue | 0             |
| elastic: no client is left                     | the server saves and ends                 | 1             |

With max_restarts the job is started by multigpu.mpi.supervisor, which starts it again after a failure.

Elastic (asgd): the rows apply once the client has its device and data; a bug or bad data still ends the job.  MPICH
needs multigpu.mpi.rank_wrapper for it, Open MPI `mpiexec --enable-recovery`.

MPICH's mpiexec forwards the three signals to all ranks.  Open MPI's forwards only SIGUSR1, and kills its ranks half a
second after the others; stop such a job by `kill -USR1` to mpiexec or a rank, or by `scancel --signal=USR1 JOB`.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from alexnet.config.schema import Config, ConfigError
from alexnet.data.dataset import DataError, ReadError
from alexnet.native.atomic import reason
from alexnet.native.console import say, write_now
from alexnet.native.packages import TRAIN_PROGRAM
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.loop import Diverged, InputLost
from multigpu.communicator import DesyncError, PeerDied, StateDamaged
from multigpu.device import DeviceError
from multigpu.failure.heartbeat import FORWARDING, HeartbeatClient
from multigpu.failure.protocol import ORDERS, Failure, JobSettings
from multigpu.launch import clock
from multigpu.launch.link import JobLink
from multigpu.launch.process import SIGNAL_DEBOUNCE, SIGNALS, stop_signals
from multigpu.launch.signals import stop_notice
from multigpu.launch.workers import WorkFunction
from multigpu.mpi import tcp
from multigpu.mpi.communicator import MPI, MpiCommunicator, end_without_finalize, leave_no_files
from multigpu.mpi.placement import place_rank
from multigpu.mpi.rank_wrapper import is_wrapped
from multigpu.mpi.supervisor_link import send_log, settle_supervised
from multigpu.rules import rule_of

LOOPBACK = "127.0.0.1"
STATUS_OF = {CheckpointError: 2, ConfigError: 2, DataError: 2, DeviceError: 2, Diverged: 1, DesyncError: 1, OSError: 2}


class MonitorAddress(NamedTuple):
    """Rank 0 to all: where the monitor listens, and the key of the job. That of the other ranks has no meaning."""

    addresses: list[str]
    port: int
    key: bytes
    step: int = 0


class JobConfig(NamedTuple):
    """Rank 0 to all: the settings, as from Config.as_message(), or the message why they are invalid."""

    settings: dict[str, Any] | None
    error: str | None
    step: int = 0


def run(settle: Callable[[], Config], entry: WorkFunction | None = None) -> int:
    """Run this rank's part of the job; return the exit status.

    Args:
        settle: returns the settings, or raises ConfigError, DataError or CheckpointError; called only at rank 0.
        entry: the function that each rank runs; None: multigpu.worker.work.
    """
    comm = MpiCommunicator()
    leave_no_files()
    monitor, heartbeat = start_heartbeat(comm)
    link = MpiLink(heartbeat, comm)
    try:
        error = train(settle, entry, link, comm)
    except BaseException as exception:
        with comm.waiting():                     # from here on no rank depends on this one
            heartbeat.fail(failure_of(exception))
            clock.sleep(60)                      # the monitor ends this process
        raise
    heartbeat.finish(2 if error else link.status())
    status = heartbeat.status
    if monitor is not None and heartbeat.complete:
        monitor.wait()
    if status and comm.rank == 0:
        say(f"{TRAIN_PROGRAM}: {error}" if error else f"stopped by {signal.Signals(status - 128).name}")
    if not heartbeat.complete or is_wrapped():   # MPI_Finalize would wait for a client that dies in it
        end_without_finalize(status)
    if status:
        MPI.Finalize()                           # otherwise mpi4py aborts the job on a nonzero status
    return status


def start_heartbeat(comm: MpiCommunicator) -> tuple[subprocess.Popen[bytes] | None, HeartbeatClient]:
    """Start the monitor at rank 0 and connect this rank to it; collective. Return (the monitor or None, the client)."""
    monitor, address = start_monitor(comm) if comm.rank == 0 else (None, MonitorAddress([], 0, b""))
    addresses, port, key, _ = comm.allgather(address)[0]
    try:
        return monitor, HeartbeatClient(comm, tcp.connect(addresses, port, key, ORDERS, tcp.PATIENCE))
    except ConnectionError as error:             # the monitor would not notice a failure of this rank
        write_now(f"rank {comm.rank} on {comm.hosts[comm.rank]} cannot reach the job's monitor on {comm.hosts[0]} over "
                  f"TCP: {error}")
        clock.sleep(FORWARDING)
        MPI.COMM_WORLD.Abort(1)
        raise


def start_monitor(comm: MpiCommunicator) -> tuple[subprocess.Popen[bytes], MonitorAddress]:
    """Start the monitor in its own session, with signals blocked; return it and its address.

    Other machines can connect to it only if the job has ranks there.
    """
    local = comm.on_one_host and len(set(comm.hosts)) == 1
    key = secrets.token_bytes(32)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        place = LOOPBACK if local else "", 0
        with socket.create_server(place, backlog=max(comm.size, tcp.BACKLOG)) as listener:
            port = listener.getsockname()[1]
            numbers = map(str, (listener.fileno(), comm.size, os.getpid()))
            command = [sys.executable, "-m", "multigpu.failure.monitor", *numbers]
            monitor = subprocess.Popen(          # closes the files of MPI: otherwise mpiexec would not see rank 0 die
                command, env=environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert monitor.stdin is not None
    with monitor.stdin as stdin:
        stdin.write(key)
    return monitor, MonitorAddress([LOOPBACK] if local else tcp.own_addresses(), port, key)


def train(
    settle: Callable[[], Config], entry: WorkFunction | None, link: "MpiLink", comm: MpiCommunicator
) -> str | None:
    """Agree on settings and devices, then run `entry`; return the message of invalid settings, or None. Collective."""
    settings, error, _ = settle_at_rank_0(settle, comm)
    if settings is None:
        return error
    config = Config.from_message(settings)
    device, error = place_rank(config, comm)
    if device is None:
        return error
    comm.elastic = rule_of(config, comm).elastic
    if comm.rank == 0:
        link.configure(JobSettings(config.heartbeat_timeout, elastic=comm.elastic))
    if entry is None:
        from multigpu.worker import work  # it imports PyTensor, slowly, so invalid settings are reported before

        entry = work
    entry(config, device, link, comm)
    return None


def settle_at_rank_0(settle: Callable[[], Config], comm: MpiCommunicator) -> JobConfig:
    """Return rank 0's JobConfig; collective."""
    settled = JobConfig(None, None)
    if comm.rank == 0:
        try:
            config = settle_supervised(settle)
            refuse_hand_started(config)
            rule_of(config, comm)
            settled = JobConfig(config.as_message(), None)
        except (ConfigError, DataError, CheckpointError) as error:
            settled = JobConfig(None, str(error))
        except OSError as error:
            settled = JobConfig(None, reason(error))
    return comm.allgather(settled)[0]


def refuse_hand_started(config: Config) -> None:
    """Raise ConfigError for the settings of a worker that is started by hand."""
    if config.rank is not None:
        raise ConfigError(
            f"rank={config.rank} size={config.size} device={config.device} start a worker by hand; in an MPI job the "
            "ranks are MPI's, and devices=... names one device for each rank of a machine"
        )


def failure_of(error: BaseException) -> Failure:
    """Return the report of an exception; print the traceback of an unexpected one."""
    if isinstance(error, InputLost | StateDamaged):
        return Failure(str(error), fatal=False, curable=True)
    if isinstance(error, PeerDied | MPI.Exception):
        return Failure(str(error), caused_by_peer=True, curable=True)
    for kind, status in STATUS_OF.items():
        if isinstance(error, kind):
            message = reason(error) if isinstance(error, OSError) else str(error)
            return Failure(message, status, curable=isinstance(error, ReadError))
    write_now("".join(traceback.format_exception(error)).rstrip("\n"))
    return Failure(f"ended by {type(error).__name__}: {error}")


class MpiLink(JobLink):
    """The counterpart of multigpu.launch.link.LauncherLink in an MPI job; it installs handlers for the stop signals."""

    def __init__(self, heartbeat: HeartbeatClient, comm: MpiCommunicator) -> None:
        self.heartbeat = heartbeat
        self._comm = comm
        self._signal: int | None = None          # the first one received
        self._received = 0.0                     # its time
        self._settings = JobSettings()
        for number in stop_signals():
            signal.signal(number, self._receive)

    def configure(self, settings: JobSettings) -> None:
        """Send the settings of the run to the monitor; called at rank 0 only."""
        self._settings = settings
        self.heartbeat.configure(settings)

    def log_to(self, path: Path) -> None:
        self.configure(self._settings._replace(log=os.path.abspath(path)))
        send_log(path.absolute())

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal = number
            self._received = now
            self.heartbeat.stop()
            if self._comm.rank == 0:
                write_now(stop_notice(number))
        elif now - self._received >= SIGNAL_DEBOUNCE:
            reason = f"killed by a second {signal.Signals(number).name}, without saving"
            is_client = self._comm.elastic and self._comm.rank > 0
            self.heartbeat.fail(Failure(reason, 128 + number, fatal=not is_client))

    def status(self) -> int:
        """Return the exit status of this rank's signal, 0 without one or if this rank has left the others."""
        return 128 + self._signal if self._signal is not None and not self._comm.has_left else 0

    def stop_requested(self) -> bool:
        """Return whether to finish the step, save and end. It is called after each step and counts as progress."""
        self._comm.progress()
        return self._signal is not None

    def stopping(self) -> bool:
        return self._signal is not None

    def report(self, message: str, status: int = 1, caused_by_peer: bool = False, curable: bool = True) -> None:
        """Report, from any thread, that this rank has lost its loader; the rank or the job then ends within seconds."""
        self.heartbeat.fail(Failure(message, status, fatal=False, curable=curable))
