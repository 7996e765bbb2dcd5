"""The interface that connects the workers of one job, its implementation with pipes, and the messages of the workers.

A worker that sends a message to all peers and receives one from each has passed a barrier.  Each message carries its
step, so that desynchronised workers raise an error instead of averaging mismatched steps.

Source: Ding et al. 2014, section 4.3 (context syncing and additional message communications).
"""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

from alexnet.config.schema import Config, ConfigError
from alexnet.training.timing import Lap
from multigpu.device.handles import Handle
from multigpu.launch.link import LauncherLink, Stage, close_all
from multigpu.launch.process import PeerWatch
from multigpu.messages import MAX_MESSAGE, MessageError, UnknownMessage, decoder, encode

if TYPE_CHECKING:                                # the launcher imports this module and must not import PyTensor
    from alexnet.training.network import Network
    from multigpu.device.base import Device
    from multigpu.mpi.communicator import MPI

# settings that may differ between workers
OWN = {"rank", "device", "devices", "threads", "isa", "run_name", "resume_train", "print_freq"}


class Message(Protocol):
    """What a Communicator carries: a message of multigpu.messages, with the number of the step that it belongs to."""

    @property
    def step(self) -> int:
        """Number of the step."""


M = TypeVar("M", bound=Message)


class WorkerInfo(NamedTuple):
    """First message: identifies the sender. Settings, weights and completed steps must be equal on all workers."""

    step: int                                    # completed steps
    device: str
    pid: int
    settings: dict[str, Any]                     # as in JSON
    weights: dict[str, int]                      # {name: checksum}


class DeviceInfo(NamedTuple):
    """The name of the device on which the sender allocates its buffers."""

    step: int
    device: str


class Reachability(NamedTuple):
    """Whether the sender can access the memory of all peers: None, or the reason why not."""

    step: int
    reason: str | None


class BufferHandle(NamedTuple):
    """The handle of the sender's flat buffer, see multigpu.device.handles."""

    step: int
    handle: Handle


class StateDigest(NamedTuple):
    """Digest of the sender's weights and velocities after this step; see multigpu.rules.state_check.

    digest: CRC-32 of the sums of their bits.
    """

    step: int
    digest: int


class Ready(NamedTuple):
    """The arrays of this step are in the sender's buffer and may be read; no copy is pending.

    A cost that is not a number: the sender cannot do this step, and all end before it.
    state: of the sender after the last exchange, if it must be that of the others; None: unknown.
    """

    step: int
    cost: float
    error: float
    stop: bool
    state: StateDigest | None = None


class SyncRemaining(NamedTuple):
    """The arrays that this step would not have averaged are in the sender's buffer, because training stops after it."""

    step: int


class Done(NamedTuple):
    """The sender has finished reading and writing its peers' buffers, which they may now change."""

    step: int


class TimingReport(NamedTuple):
    """Time per activity of the sender, for the steps up to this one."""

    step: int
    lap: Lap


class Totals(NamedTuple):
    """The sender's terms of a sum over all workers; step is the index of the sum."""

    step: int
    values: tuple[float, ...]
    stop: bool


class Closed(NamedTuple):
    """The sender has closed its peers' buffers, which may now be freed."""

    step: int


class PeerDied(RuntimeError):
    """Another worker has exited; the message names it."""


class DesyncError(RuntimeError):
    """Another worker is at a different step or message; the error message gives the state of both."""


class StateDamaged(RuntimeError):
    """Weights or velocities have changed in the memory of a worker, or differ between workers; the message names it."""


def desync_error(sender: str, sent: str, receiver: str, awaited: str) -> DesyncError:
    """Return the DesyncError of a receiver that got `sent` but expected `awaited`, such as "Done of step 3"."""
    return DesyncError(
        f"{sender} sent {sent}, {receiver} waits for {awaited}: "
        "the workers are out of step; restart all of them from one checkpoint"
    )


def decode_step(
    data: bytes, kind: type[M], step: int, sender: str, receiver: str, limit: int = MAX_MESSAGE
) -> M:
    """Return the message in `data`, which must have this type and step.

    Args:
        sender, receiver: their names in error messages.
        limit: largest number of bytes of a message.

    Raises:
        DesyncError: it has another type or step, or is no message.
    """
    awaited = f"{kind.__name__} of step {step}"
    try:
        message = decoder(kind, limit)(data)
    except UnknownMessage as error:
        raise desync_error(sender, error.sent, receiver, awaited) from None
    except MessageError as error:
        raise DesyncError(
            f"what {sender} sent is no {awaited}, so it does not belong to this run: {error}; restart all workers from "
            "one checkpoint"
        ) from error
    if message.step != step:
        raise desync_error(sender, f"{kind.__name__} of step {message.step}", receiver, awaited)
    return message


class Communicator(ABC):
    """Connects the workers of one job. Methods are named after MPI's.

    Attributes:
        over_mpi: whether the workers are ranks of an MPI job.
        works_in_threads: whether any thread may use it, one at a time.
        recovers: whether recover() is implemented: a dead peer is replaced during the training.
        replaces: whether this worker replaces one that has died during the training.
        rank: rank of this worker.
        size: number of workers.
        on_one_host: whether all workers run on one machine.
        local_rank, local_size: rank among, and number of, the workers on this machine.
        hosts: host name of each rank.
        mpi: mpi4py communicator for arrays; only over MPI.
    """

    over_mpi: bool
    works_in_threads: bool = True
    recovers: bool = False
    replaces: bool = False
    rank: int
    size: int
    on_one_host: bool
    local_rank: int
    local_size: int
    hosts: Sequence[str]
    mpi: "MPI.Intracomm"

    @abstractmethod
    def allgather(self, message: M) -> list[M]:
        """Return the message of every rank, in rank order; collective, and therefore a barrier.

        Raises:
            PeerDied: a peer has exited.
            DesyncError: a peer sent a message of another step or type.
        """

    @abstractmethod
    def set_pid(self, rank: int, pid: int) -> None:
        """Record the process id of a rank, to be named in error messages."""

    def watch(self, on_death: Callable[[int], None]) -> PeerWatch:
        """Call on_death(rank), from a thread, as soon as a peer exits; until close() or the end of the with block.

        The default watches no peer.
        """
        return PeerWatch({}, on_death)

    def waiting(self) -> AbstractContextManager[object]:
        """Return a context in which this rank waits for others and is therefore not hung; the default does nothing."""
        return nullcontext()

    def recover(self) -> None:
        """Connect to the replacement of a dead peer, after PeerDied. Messages in transit are lost. Collective.

        Raises:
            PeerDied: a stop is requested, so the peer is not replaced.
        """
        raise NotImplementedError(f"{type(self).__name__} does not replace a dead peer")

    def set_stage(self, stage: Stage) -> None:
        """Notify the launcher of the stage of this worker; the default does nothing."""
        return None

    @abstractmethod
    def detach(self) -> None:
        """Declare that only a server waits for this rank, and can continue without it."""


class PipeCommunicator(Communicator):
    """Connects the workers of one host by a pipe between every two of them; the death of a peer is an EOF.

    Args:
        rank: rank of this worker.
        pipes: {rank: Connection} to each of the other workers, which holds the only other end.
        link: to a launcher that replaces dead workers; None: it does not.
        replaces: whether this worker is a replacement.
    """

    over_mpi = False
    on_one_host = True

    def __init__(
        self, rank: int, pipes: Mapping[int, Connection], link: LauncherLink | None = None, replaces: bool = False
    ) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = len(pipes) + 1
        self.hosts = [socket.gethostname()] * self.size
        self._link = link
        self.recovers = link is not None
        self.replaces = replaces
        self._pipes = pipes
        self._names = {other: f"worker {other}" for other in pipes}

    def recover(self) -> None:
        assert self._link is not None, "the launcher replaces no worker"
        close_all(self._pipes.values())          # a peer that waits for this worker gets an EOF, and recovers too
        pipes = self._link.next_pipes()
        if pipes is None:
            raise PeerDied(f"another worker has died during a stop; worker {self.rank} cannot continue without it")
        self._pipes = pipes
        self._names = {other: f"worker {other}" for other in pipes}

    def set_stage(self, stage: Stage) -> None:
        if self._link is not None:
            self._link.set_stage(stage)

    def send_all(self, message: Message) -> None:
        """Send a message to every peer.

        Raises:
            PeerDied: a peer has exited.
            ValueError: the message is too long for the pipes, so that two workers would wait for each other.
        """
        data = encode(message)
        for other, pipe in self._pipes.items():
            try:
                pipe.send_bytes(data)
            except ConnectionError as error:
                raise self._peer_died(other) from error

    def recv_all(self, kind: type[M], step: int) -> dict[int, M]:
        """Return {rank: message} with one message from each peer.

        Raises:
            PeerDied: a peer has exited; raised at once, even if other peers have not sent yet.
            DesyncError: a peer sent a message of another type or step.
        """
        received: dict[int, M] = {}
        while len(received) < len(self._pipes):
            pending = {other: pipe for other, pipe in self._pipes.items() if other not in received}
            ready = connection.wait(pending.values())
            received |= {other: self._receive(other, kind, step) for other, pipe in pending.items() if pipe in ready}
        return received

    def allgather(self, message: M) -> list[M]:
        self.send_all(message)
        received = self.recv_all(type(message), message.step) | {self.rank: message}
        return [received[rank] for rank in range(self.size)]

    def set_pid(self, rank: int, pid: int) -> None:
        self._names[rank] = f"worker {rank} (pid {pid})"

    def watch(self, on_death: Callable[[int], None]) -> PeerWatch:
        return PeerWatch({} if self.recovers else self._pipes, on_death)     # the launcher detects deaths as fast

    def detach(self) -> None:
        """Do nothing: without MPI no worker can be lost."""

    def _receive(self, other: int, kind: type[M], step: int) -> M:
        try:
            data = self._pipes[other].recv_bytes(MAX_MESSAGE)
        except (EOFError, ConnectionError) as error:
            raise self._peer_died(other) from error
        except OSError as error:                 # the peer announces more bytes
            raise DesyncError(f"{self._names[other]} sent more than {MAX_MESSAGE} bytes: {error}") from error
        return decode_step(data, kind, step, self._names[other], f"worker {self.rank}")

    def _peer_died(self, other: int) -> PeerDied:
        return PeerDied(f"{self._names[other]} has died; worker {self.rank} cannot continue without it")


def verify_consistency(config: Config, network: "Network", device: "Device", comm: Communicator, step: int) -> None:
    """Exchange WorkerInfo with all peers and compare; collective.

    Args:
        step: number of completed steps.

    Raises:
        ConfigError: settings or weights differ, see check_consistency.
        DesyncError: the numbers of completed steps differ.
    """
    infos = comm.allgather(worker_info_of(config, network, device, step))
    for rank, info in enumerate(infos):
        comm.set_pid(rank, info.pid)
        check_consistency(rank, info, infos[0])


def worker_info_of(config: Config, network: "Network", device: "Device", step: int) -> WorkerInfo:
    """Return the WorkerInfo of this worker after `step` steps."""
    settings = {name: value for name, value in config.as_dict().items() if name not in OWN}
    variables = [*network.frozen_parameters, *network.parameters_and_velocities]
    weights = {variable.name: checksum(variable.get_value(borrow=True)) for variable in variables}
    return WorkerInfo(step, device.name, os.getpid(), settings, weights)


def check_consistency(rank: int, info: WorkerInfo, first: WorkerInfo) -> None:
    """Raise ConfigError if the settings or weights of a worker differ from worker 0's.

    Args:
        rank: rank of the worker.
        info: WorkerInfo of the worker.
        first: WorkerInfo of worker 0.
    """
    for name, value in info.settings.items():
        if value != first.settings[name]:
            raise ConfigError(
                f"workers 0 and {rank} differ in {name}: {first.settings[name]} and {value}; give both the same"
            )
    for name, value in info.weights.items():
        if value != first.weights.get(name):
            raise ConfigError(
                f"workers 0 and {rank} begin with different {name}; restart both, or resume both from one checkpoint"
            )


def total(comm: Communicator, step: int, values: Sequence[float] | np.ndarray, stop: bool) -> tuple[np.ndarray, bool]:
    """Sum values over all workers; collective.

    Args:
        step: index of this sum.
        values: this worker's terms.
        stop: whether this worker has to stop.

    Returns:
        (float64 array of the sums, whether any worker has to stop).
    """
    terms = comm.allgather(Totals(step, tuple(map(float, values)), bool(stop)))
    return np.sum([each.values for each in terms], axis=0), any(each.stop for each in terms)


def checksum(array: np.ndarray) -> int:
    """Return the sum of a float32 array's bits as 32-bit words, modulo 2**32."""
    return int(np.asarray(array).view(np.uint32).sum(dtype=np.uint32))
