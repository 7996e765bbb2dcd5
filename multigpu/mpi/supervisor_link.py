"""The connection of an MPI job to its supervisor (multigpu.mpi.supervisor), which can start the job again; over TCP.

| from    | to         | message                 | meaning                                        |
|---------|------------|-------------------------|------------------------------------------------|
| rank 0  | supervisor | SettingsRequest         | is this start a restart?                       |
| supervisor | rank 0  | StartSettings           | the settings of a restart; None: first start   |
| rank 0  | supervisor | StartSettings           | the settings of this start                     |
| rank 0  | supervisor | LogOpened               | the run's folder exists                        |
| monitor | supervisor | JobEnded                | how the job has ended                          |
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from multigpu.launch.link import LogOpened
from multigpu.messages import Decoder
from multigpu.mpi import tcp

if TYPE_CHECKING:
    from alexnet.config import Config  # the monitor does not need it

SUPERVISOR = "ALEXNET_SUPERVISOR"                # environment variable of a supervised job: see address()


class SettingsRequest(NamedTuple):
    """Rank 0 to supervisor: send the StartSettings of this start."""


class StartSettings(NamedTuple):
    """Supervisor to rank 0: the settings of a restart, or None at the first start. Rank 0 to supervisor: the settings.

    settings: as from Config.as_message().
    """

    settings: dict[str, Any] | None


class JobEnded(NamedTuple):
    """Monitor to supervisor: how the job has ended.

    reason: the failure; None: all ranks have finished.
    curable: a restart may succeed.
    log: the log file of the run; empty if there is none yet.
    """

    status: int
    reason: str | None = None
    curable: bool = False
    log: str = ""


Report: TypeAlias = SettingsRequest | StartSettings | LogOpened | JobEnded          # to the supervisor

REPORTS: Decoder[Report] = Decoder([SettingsRequest, StartSettings, LogOpened, JobEnded], tcp.MAX_BYTES)
ANSWERS: Decoder[StartSettings] = Decoder([StartSettings], tcp.MAX_BYTES)


def address(port: int, key: bytes) -> str:
    """Return the value of SUPERVISOR for a supervisor on this machine."""
    return f"{','.join(tcp.own_addresses())}:{port}:{key.hex()}"


def connect() -> tcp.TcpConnection[StartSettings] | None:
    """Return the connection to the supervisor of this job; None if it has none. Raises ConnectionError."""
    if SUPERVISOR not in os.environ:
        return None
    addresses, port, key = os.environ[SUPERVISOR].split(":")
    return tcp.connect(addresses.split(","), int(port), bytes.fromhex(key), ANSWERS, tcp.PATIENCE)


def settle_supervised(settle: Callable[[], "Config"]) -> "Config":
    """Return the settings of this start of the job; called at rank 0.

    Args:
        settle: returns the settings of the first start.

    Raises:
        ConfigError: max_restarts is set, and no supervisor has started the job.
        ConnectionError: the supervisor cannot be reached.
    """
    from alexnet.config import Config, ConfigError  # the monitor does not need it

    supervisor = connect()
    if supervisor is None:
        config = settle()
        if config.max_restarts:
            raise ConfigError(
                f"max_restarts={config.max_restarts} needs a process that starts mpiexec again: write `python -m "
                "multigpu restart mpiexec ...`, or set max_restarts=0"
            )
        return config
    with supervisor:
        supervisor.send(SettingsRequest())
        given = supervisor.recv().settings
        config = Config.from_message(given) if given else settle()
        places = {"output": config.output, "resume_train": config.resume_train}
        absolute = {name: os.path.abspath(os.path.expanduser(place)) for name, place in places.items() if place}
        supervisor.send(StartSettings(config.model_copy(update=absolute).as_message()))
    return config


def send_log(path: Path) -> None:
    """Send the path of the run's log to the supervisor, if the job has one; called at rank 0.

    The monitor reports it, too, but may have been killed when the job ends.
    """
    with suppress(OSError):                      # the supervisor is dead, so the job ends
        if supervisor := connect():
            with supervisor:
                supervisor.send(LogOpened(path))
