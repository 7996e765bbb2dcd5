"""Starts an MPI job, and starts it again after a failure that a restart can cure.

    python -m multigpu restart mpiexec -n 4 python -m mpi4py train.py max_restarts=3 ...

mpiexec ends all ranks when one dies, and then itself, so a restart is another mpiexec.  This process, the supervisor,
starts it with the same command line.  Rank 0 connects to the supervisor and receives the settings of the restart
instead of reading its command line; the job's monitor reports how the job has ended: see multigpu.mpi.supervisor_link.

    mpiexec ends with status 0        the supervisor, too
    the job fails                     restart, at most max_restarts times, if the failure is curable, or if the monitor
                                      is lost as well; otherwise the supervisor ends with mpiexec's status
    ... at the first start, before rank 0 has read the settings       no restart
    a stop signal to the supervisor   mpiexec receives SIGUSR1: the ranks save and end; there is no restart
    a second one                      goes to mpiexec
    the supervisor is killed          mpiexec receives SIGUSR1

SIGUSR1, because the mpiexec of MPICH and of Open MPI and srun of Slurm forward it.  Open MPI kills its ranks soon after
a SIGTERM, srun at once.  mpiexec gets no standard input, and is not in the process group of the terminal, so that a
Ctrl-C reaches only the supervisor.  The supervisor has to see the run's folder.
"""

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple, Self

from alexnet.config.schema import Config, ConfigError
from alexnet.native.console import say
from multigpu.launch.clock import TimeLimit
from multigpu.launch.link import LogOpened
from multigpu.launch.process import describe_exit, signal_at_parents_end
from multigpu.launch.restart import after_restarts, log_restart, restarted
from multigpu.launch.signals import Signals
from multigpu.messages import MessageError
from multigpu.mpi import tcp
from multigpu.mpi.shared_files import remove_left_files, shared_files
from multigpu.mpi.supervisor_link import REPORTS, SUPERVISOR, JobEnded, Report, SettingsRequest, StartSettings, address

POLL = 0.2                                       # seconds between two checks whether mpiexec has ended
CLOSING = 10.0                                   # seconds that the monitor gets to end after mpiexec


class JobResult(NamedTuple):
    """How one mpiexec has ended: its exit status, the settings if rank 0 has read them, and the end of the job."""

    status: int
    config: Config | None
    end: JobEnded
    stop: signal.Signals | None                  # the first signal to the supervisor


class JobListener:
    """Accepts the connections of one start of the job, and answers rank 0.

    Args:
        restart: the settings of a restart; None: this is the first start.

    Attributes:
        config: the settings that rank 0 has sent.
        log: the run's log, once it exists; else empty.
        end: what the monitor has reported.
    """

    def __init__(self, restart: Config | None):
        self.config: Config | None = None
        self.log = ""
        self.end: JobEnded | None = None
        self._restart = restart
        self._key = secrets.token_bytes(32)
        self._connections: list[tcp.TcpConnection[Report]] = []

    def __enter__(self) -> Self:
        listening = socket.create_server(("", 0), backlog=tcp.BACKLOG)
        self.address = address(listening.getsockname()[1], self._key)
        self._listener = tcp.Listener(listening, self._key, REPORTS, expected=2)         # rank 0 and the monitor
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def serve(self, signals: Signals) -> None:
        """Process what arrives within POLL seconds; return early at a signal."""
        wait([*self._listener.sockets(), *(each.fileno() for each in self._connections), signals.reader], POLL)
        self._connections += self._listener.accept()
        for connection in list(self._connections):
            try:
                while connection.poll():
                    self._process(connection)
            except (EOFError, OSError, MessageError, ConfigError):
                self._connections.remove(connection)
                connection.close()

    def _process(self, connection: tcp.TcpConnection[Report]) -> None:
        match connection.recv():
            case SettingsRequest():
                connection.send(StartSettings(None if self._restart is None else self._restart.as_message()))
            case StartSettings(settings) if settings is not None:
                self.config = Config.from_message(settings)
            case LogOpened(path):
                self.log = str(path)
            case JobEnded() as end:
                self.end = end

    def drain(self, signals: Signals) -> None:
        """Wait until the job has closed its connections, for at most CLOSING seconds."""
        limit = TimeLimit(CLOSING)
        while self._connections and limit.left():
            self.serve(signals)


def supervise(command: Sequence[str]) -> int:
    """Run the command of an MPI job, and again after failures that a restart can cure; return the exit status."""
    config: Config | None = None
    restarts = 0
    with Signals() as signals:
        while True:
            result = run_job(command, config, signals)
            config, end = result.config or config, result.end
            if stop := result.stop or signals.pending():
                return 128 + stop
            if not end.curable or config is None:
                return result.status or end.status
            if restarts == config.max_restarts:
                if restarts:
                    say(after_restarts(restarts, end.reason or ""))
                return end.status
            folder = Path(end.log).parent if end.log else None
            if folder and not folder.is_dir():
                say(f"the job cannot be restarted, because this machine has no {folder}: set output to a shared folder")
                return end.status
            restarts += 1
            config = restarted(config, folder)
            log_restart(config, restarts, end.reason or "")


def run_job(command: Sequence[str], restart: Config | None, signals: Signals) -> JobResult:
    """Run mpiexec until it has ended.

    Args:
        restart: the settings of a restart; None: this is the first start.
    """
    stop: signal.Signals | None = None
    shared = shared_files()
    with JobListener(restart) as listener:
        mpiexec = subprocess.Popen(
            command, env=os.environ | {SUPERVISOR: listener.address}, stdin=subprocess.DEVNULL, process_group=0,
            preexec_fn=partial(end_with_supervisor, os.getpid()),
        )
        while mpiexec.poll() is None:
            listener.serve(signals)
            if received := signals.pending():
                mpiexec.send_signal(received if stop else signal.SIGUSR1)
                stop = stop or received
                signals.handled()
        listener.drain(signals)
    remove_left_files(shared)
    if mpiexec.returncode < 0 and not (stop or listener.end or listener.config or restart):
        say(f"mpiexec {describe_exit(mpiexec.returncode)} before the job has read its settings; it is not restarted")
    status = mpiexec.returncode if mpiexec.returncode >= 0 else 128 - mpiexec.returncode
    end = listener.end or unreported(status, listener.config or restart)
    return JobResult(status, listener.config, end._replace(log=end.log or listener.log), stop)


def unreported(status: int, config: Config | None) -> JobEnded:
    """Return the end of a job whose monitor has reported none."""
    if status == 0 or config is None:
        return JobEnded(status)
    reason = f"mpiexec has ended with status {status}, and the job's monitor has ended without a report"
    return JobEnded(1, reason, curable=True)


def end_with_supervisor(supervisor: int) -> None:
    """In mpiexec's process: have the kernel send it SIGUSR1 as soon as the supervisor ends."""
    signal_at_parents_end(signal.SIGUSR1)
    if os.getppid() != supervisor:
        os._exit(1)                              # the supervisor died before the prctl call
