"""Messages between the ranks of an MPI job and its monitor, over a connection of multigpu.mpi.tcp."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from multigpu.messages import Decoder
from multigpu.mpi.tcp import MAX_BYTES


class JobSettings(NamedTuple):
    """heartbeat_timeout: seconds; log: the run's log file; elastic: whether the others continue without a lost rank."""

    heartbeat_timeout: float = 300.0
    log: str = ""
    elastic: bool = False


class Failure(NamedTuple):
    """Why a rank cannot continue, and the exit status of the job."""

    reason: str
    status: int = 1
    fatal: bool = True                           # the job ends even if the rule is elastic
    caused_by_peer: bool = False                 # another rank's failure is more informative
    curable: bool = False                        # a restart of the job may succeed


@dataclass
class Heartbeat:
    """Rank to monitor, every second and at each change: the complete state of the rank."""

    rank: int
    pid: int
    host: str
    steps: int = 0                               # rises with progress
    waiting: bool = True                         # for other ranks
    begun: bool = False                          # its first step is complete
    detached: bool = False                       # only the server waits for it, and can continue without it
    finished: int | None = None                  # its work is complete, and it requests this exit status for the job
    failure: Failure | None = None
    settings: JobSettings | None = None          # of rank 0, once they are known
    stopping: bool = False                       # it has received a stop signal


class RankDropped(NamedTuple):
    """Monitor to rank 0: continue without this rank."""

    rank: int


class EndJob(NamedTuple):
    """Monitor to rank: a rank has failed, exit. abort: call MPI_Abort with this status."""

    status: int
    abort: bool


class Released(NamedTuple):
    """Monitor to rank: all ranks have finished, exit with this status. complete: no rank is missing."""

    status: int
    complete: bool


Order: TypeAlias = RankDropped | EndJob | Released               # monitor to rank

HEARTBEATS: Decoder[Heartbeat] = Decoder([Heartbeat], MAX_BYTES)
ORDERS: Decoder[Order] = Decoder([RankDropped, EndJob, Released], MAX_BYTES)


def name_of(rank: int, pid: int, host: str) -> str:
    """Return a rank's name in messages."""
    return f"rank {rank} (pid {pid} on {host})"
