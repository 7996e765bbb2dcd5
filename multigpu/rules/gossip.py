"""What rules gosgd and noloco have in common: messages between any two workers, stop requests, and the consensus.

All workers enter consensus() at the end of an epoch and for saving. They exchange the number of messages that each
has sent to each, and receive until no message is in transit. The network then holds the mean over the workers, and
each worker continues with its own state. A worker that is requested to stop notifies the others and enters; the others
enter after their current step. If one worker enters because it stops, all workers skip the operation for which they
entered, and rank 0 saves. All workers enter equally often, so no worker waits for one that has ended. In a resumed
run, all workers start from the consensus.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import numpy as np

from alexnet.config import Config
from alexnet.training.base import Synchronizer
from alexnet.training.timing import Lap
from multigpu.communicator import Closed, DesyncError, Message, total
from multigpu.device.host import HostDevice
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.messages import Decoder
from multigpu.rules.groups import shapes_of

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.mpi.communicator import MpiCommunicator

LOOKS = 2                                        # maximum number of messages per worker that a step receives


class Stop(NamedTuple):
    """The sender was requested to stop."""

    step: int
    sender: int


class GossipTiming(NamedTuple):
    """Timing of the sender, for rank 0."""

    step: int
    sender: int
    lap: Lap


class WeightedGroup(NamedTuple):
    """Shared variables and the FlatBuffer that holds them; on the host, the variables use its memory."""

    variables: list[SharedVariable]
    flat: FlatBuffer

    def pack(self) -> np.ndarray:
        """Copy the variables to the buffer and return it as an array."""
        self.flat.pack(self.variables)
        return self.flat.array()

    def unpack(self) -> None:
        """Copy the buffer to the variables."""
        self.flat.unpack(self.variables)


def host_groups(lists: Iterable[list[SharedVariable]], device: Device) -> list[WeightedGroup]:
    """Return a WeightedGroup on the host for each list of variables that is not empty."""
    host = HostDevice(device.on_host)
    groups = [WeightedGroup(variables, FlatBuffer(host, shapes_of(variables))) for variables in lists if variables]
    for group in groups:
        group.pack()
        group.unpack()
    return groups


class Gossip(Synchronizer):
    """The Synchronizer of a rule whose workers exchange with one other worker at a time.

    Args:
        groups: what a consensus averages, and restores afterwards.
        own_values: for each group an array of its size; holds the values of this worker during a consensus.

    Attributes:
        announcement: the message of the rule that announces arrays.
    """

    announcement: ClassVar[type]

    def __init__(
        self, network: Network, groups: Sequence[WeightedGroup], own_values: Sequence[np.ndarray], config: Config,
        comm: Communicator, recorder: Recorder,
    ):
        from multigpu.mpi.channel import Channel  # importing it initialises MPI

        self._network = network
        self._groups = groups
        self._own_values = own_values
        self._seed = config.random_seed
        self._comm = comm
        self._mpi = comm.mpi
        self._rank = comm.rank
        self._size = comm.size
        self._recorder = recorder
        self._channel = Channel(cast("MpiCommunicator", comm), Decoder([Stop, GossipTiming, self.announcement]))
        self._share = 1 / self._size             # weight of this worker in the consensus
        self._step = 0                           # the last step of this worker
        self._stop = False
        self._over = False                       # all workers have agreed to stop
        self._entries = 0                        # into consensus
        self._totals = 0
        self._laps: dict[int, Lap] = {}          # at rank 0: the last timing of each other worker

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        return self._network.train(*inputs, rate)

    @abstractmethod
    def _accept(self, message: Message) -> None:
        """Accept a message of this rule, or refuse it."""

    @abstractmethod
    def _settle(self) -> None:
        """Complete all transfers of arrays; all workers are in consensus, and all messages have been received."""

    def _receive_after(self, step: int) -> None:
        """Receive some of the messages that have arrived, after this step."""
        self._step = step
        for _ in range(LOOKS * self._size):
            if not self._receive():
                break

    def _receive(self) -> bool:
        """Receive one message; returns whether any arrived."""
        message = self._channel.take()
        if type(message) is Stop:
            self._stop = True
        elif type(message) is GossipTiming and self._rank == 0:
            self._laps[message.sender] = message.lap
        elif message is not None:
            self._accept(message)
        return message is not None

    def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until condition() is true; receive in the meantime."""
        self._channel.until(lambda: condition() or self._receive() and False)

    def _notify_of_stop(self) -> None:
        """Send Stop to all other workers, unless a worker has done so."""
        if not self._stop:
            self._stop = True
            for other in range(self._size):
                if other != self._rank:
                    self._channel.send(Stop(self._step, self._rank), other)

    @contextmanager
    def consensus(self, stop: bool = False) -> Iterator[bool]:
        """See Synchronizer. Afterwards each worker continues from its own state, unless all stop."""
        if not self._over:
            self._over = self._enter(stop or self._stop)
            self._mix()
        try:
            yield self._over
        finally:
            if not self._over:
                self._unmix()

    def _enter(self, stop: bool) -> bool:
        """Wait for all workers, and until no message is in transit; returns whether any worker has to stop."""
        self._entries += 1
        if stop:
            self._notify_of_stop()               # workers that are not here yet may wait for this one
        rows = self._gather(np.array([self._entries, stop, *self._channel.sent]))        # one row per rank
        if set(rows[:, 0]) != {self._entries}:
            raise DesyncError(
                f"the ranks have entered consensus {', '.join(map(str, rows[:, 0]))} times, by rank: "
                "the workers are out of step; restart all of them from one checkpoint"
            )
        expected = int(rows[:, 2 + self._rank].sum())
        self._until(lambda: self._channel.received >= expected)
        self._settle()
        return bool(rows[:, 1].any())

    def _gather(self, own: np.ndarray) -> np.ndarray:
        """Return the arrays of all ranks, by rank; receives in the meantime."""
        of_all = np.empty((self._size, own.size), own.dtype)
        self._until(self._mpi.Iallgather(own, of_all).Test)
        return of_all

    def _mix(self) -> None:
        """Set the network to the means over the workers, weighted by their shares."""
        for group, own in zip(self._groups, self._own_values, strict=True):
            np.copyto(own, group.pack())
            self._add_up(group)

    def _add_up(self, group: WeightedGroup) -> None:
        """Set the variables of a group to the mean of the workers' buffers, weighted by their shares. Collective."""
        array = group.flat.array()
        array *= np.float32(self._share)
        self._channel.add_up(array)
        group.unpack()

    def _unmix(self) -> None:
        """Restore this worker's own state in the network."""
        for group, own in zip(self._groups, self._own_values, strict=True):
            np.copyto(group.flat.array(), own)
            group.unpack()

    def gather(self, lap: Lap) -> list[Lap]:
        if self._rank:
            self._channel.send(GossipTiming(lap.iteration, self._rank, lap), 0)
            return []
        return [lap, *self._laps.values()]

    def total(self, values: np.ndarray, stop: bool) -> tuple[np.ndarray, bool]:
        self._totals += 1
        return total(self._comm, self._totals, values, stop)

    def close(self) -> None:
        self._channel.close()
        self._comm.allgather(Closed(0))
        for group in self._groups:
            group.flat.close()
