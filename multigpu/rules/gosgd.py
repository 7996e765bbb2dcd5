"""Gossip SGD: after a step, a worker pushes its weights to another worker with some probability, without waiting.

    v_i <- mu v_i - lr_p (g_i + eta w_i),  w_i <- w_i + v_i          each step, on worker i only
    a_s <- a_s / 2;  push (w_s, a_s) to r                            with probability p, r uniformly another worker
    w_r <- (a_r w_r + a_s w_s) / (a_r + a_s),  a_r <- a_r + a_s      on arrival

a_i is the share of worker i and starts at 1/N. The sum of all a and the sum of all a w, including messages in transit,
are invariant. The sum of a_i w_i is the consensus, which is validated and saved.

A push is a GossipPush message with the share, and an array. Each worker has at most one push in transit, sent from a
copy of its weights. A worker that needs to push again waits for the previous push and receives in the meantime, so
even p = 1 cannot deadlock.

All workers enter consensus() at the end of an epoch and for saving. They exchange the number of messages that each
has sent to each, and receive until no message is in transit. Their shares must then add up to 1. A worker that is
requested to stop notifies the others and enters; the others enter after their current step. If one worker enters
because it stops, all workers skip the operation for which they entered, and rank 0 saves. All workers enter equally
often, so no worker waits for one that has ended. In a resumed run, all workers start from the consensus with 1/N.

Source: Blot et al. 2016, algorithms 3 and 4; Ma et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from alexnet.config import Config, Section
from alexnet.config.fields import Fraction
from alexnet.data.augment import random_stream
from alexnet.training.base import StepResult, Synchronizer
from alexnet.training.timing import Lap
from multigpu.communicator import Closed, DesyncError, total, verify_consistency
from multigpu.device.host import HostDevice
from multigpu.exchange.flat_buffer import FlatBuffer, blocks
from multigpu.rules.base import RULES, Rule
from multigpu.rules.bsp import shapes_of, weights_and_velocities

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.mpi.communicator import MPI, MpiCommunicator

GOSSIP = 3                                       # id of the random stream; alexnet.data.augment uses 1 and 2
LOOKS = 2                                        # maximum number of messages per worker that a step receives
ROUNDING = 1e-9                                  # tolerance for the sum of all shares


class GossipPush(NamedTuple):
    """Announces an array: the weights after this step, with this share."""

    step: int
    sender: int
    share: float


class Stop(NamedTuple):
    """The sender was requested to stop."""

    step: int
    sender: int


class GossipTiming(NamedTuple):
    """Timing of the sender, for rank 0."""

    step: int
    sender: int
    lap: Lap


class GosgdSettings(Section):
    """How often a worker pushes its weights."""

    gosgd_p: Fraction


@RULES.register("gosgd")
class GosgdRule(Rule):
    """A worker pushes its weights to a random other worker after a step, with probability gosgd_p."""

    settings = (GosgdSettings,)

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Gosgd:
        verify_consistency(config, network, device, comm, step)
        host = HostDevice(device.on_host)
        groups = [
            WeightedGroup(variables, FlatBuffer(host, shapes_of(variables)))
            for variables in weights_and_velocities(network) if variables
        ]
        return Gosgd(network, groups, config, comm, recorder)


def receiver(seed: int, rank: int, size: int, step: int, p: float) -> int | None:
    """Return the rank to which a worker pushes after a step, or None; a function of seed, rank and step."""
    draw = random_stream(seed, GOSSIP, rank, step)
    if draw.random() >= p:
        return None
    other = int(draw.integers(size - 1))
    return other + (other >= rank)


def halved(share: float) -> tuple[float, float]:
    """a <- a / 2: return the share that the worker keeps and the share that it pushes."""
    return share / 2, share / 2


def merged(weights: np.ndarray, share: float, pushed: np.ndarray, pushed_share: float) -> float:
    """Merge pushed weights into a worker's weights, in place; returns its new share.

        w_r <- (a_r w_r + a_s w_s) / (a_r + a_s) = w_r + a_s / (a_r + a_s) (w_s - w_r),  a_r <- a_r + a_s

    weights, pushed  one-dimensional float arrays of the same length and dtype
    """
    both = share + pushed_share
    part = weights.dtype.type(pushed_share / both)
    for w, theirs, way in blocks(weights, pushed):
        np.subtract(theirs, w, out=way)
        way *= part
        w += way
    return both


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


class Gosgd(Synchronizer):
    """The Synchronizer of rule gosgd.

    Args:
        groups: the weights, and the velocities if there are any.
    """

    def __init__(
        self, network: Network, groups: list[WeightedGroup], config: Config, comm: Communicator, recorder: Recorder,
    ):
        from multigpu.mpi.channel import Channel  # importing it initialises MPI

        self._network = network
        self._groups = groups
        self._seed = config.random_seed
        self._p = config.section(GosgdSettings).gosgd_p
        self._comm = comm
        self._mpi = comm.mpi
        self._rank = comm.rank
        self._size = comm.size
        self._recorder = recorder
        self._channel = Channel(cast("MpiCommunicator", comm))
        for group in groups:
            group.pack()
            group.unpack()
        self._weights = groups[0]
        self._share = 1 / self._size
        scratch = np.empty_like(groups[-1].flat.array())
        self._push_buffer = np.empty_like(groups[0].flat.array())
        self._arrival_buffer = scratch[: self._push_buffer.size]
        self._own_values = (self._push_buffer, scratch)          # of this worker, during consensus
        self._sending: MPI.Request | None = None
        self._arriving: tuple[GossipPush, MPI.Request] | None = None
        self._stop = False
        self._over = False                       # all workers have agreed to stop
        self._entries = 0                        # into consensus
        self._totals = 0
        self._laps: dict[int, Lap] = {}          # at rank 0: the last timing of each other worker

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        return self._network.train(*inputs, rate)

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        with self._recorder.time("comm"):
            for _ in range(LOOKS * self._size):
                if not self._receive():
                    break
        if (other := receiver(self._seed, self._rank, self._size, step, self._p)) is not None:
            self._push(step, other)
        if stop and not self._stop:
            self._stop = True
            for other in self._others():
                self._channel.send(Stop(step, self._rank), other)
        return StepResult(float(cost), float(error), self._stop)

    def _others(self) -> list[int]:
        return [rank for rank in range(self._size) if rank != self._rank]

    def _push(self, step: int, other: int) -> None:
        """Push the weights and half of the share, after the previous push has been sent."""
        with self._recorder.time("sync"):
            self._until(self._is_sent)
        with self._recorder.time("comm"):
            np.copyto(self._push_buffer, self._weights.pack())
            self._share, pushed = halved(self._share)
            self._channel.send(GossipPush(step, self._rank, pushed), other)
            self._sending = self._mpi.Isend(self._push_buffer, other, self._channel.ARRAY)

    def _is_sent(self) -> bool:
        """Return whether the previous push has been sent."""
        return self._sending is None or self._sending.Test()

    def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until condition() is true; receive in the meantime."""
        self._channel.until(lambda: condition() or self._receive() and False)

    def _receive(self) -> bool:
        """Receive one message, or the array that the last message announced; returns whether anything arrived."""
        if self._arriving:
            return self._receive_array()
        message = self._channel.take()
        if type(message) is GossipPush:
            self._arriving = message, self._mpi.Irecv(self._arrival_buffer, message.sender, self._channel.ARRAY)
        elif type(message) is Stop:
            self._stop = True
        elif type(message) is GossipTiming and self._rank == 0:
            self._laps[message.sender] = message.lap
        elif message is not None:
            self._channel.refuse(message, "Push or Stop")
        return message is not None

    def _receive_array(self) -> bool:
        """Merge the announced array if it has arrived; returns whether it has."""
        assert self._arriving is not None
        push, request = self._arriving
        if not request.Test():
            return False
        self._share = merged(self._weights.pack(), self._share, self._arrival_buffer, push.share)
        self._weights.unpack()
        self._arriving = None
        return True

    @contextmanager
    def consensus(self, stop: bool = False) -> Iterator[bool]:
        """See Synchronizer. Afterwards each worker continues from its own weights and velocities, unless all stop."""
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
        rows = self._gather(np.array([self._entries, stop, *self._channel.sent]))        # one row per rank
        if set(rows[:, 0]) != {self._entries}:
            raise DesyncError(
                f"the ranks have entered consensus {', '.join(map(str, rows[:, 0]))} times, by rank: "
                "the workers are out of step; restart all of them from one checkpoint"
            )
        expected = int(rows[:, 2 + self._rank].sum())
        self._until(lambda: self._channel.received >= expected and not self._arriving and self._is_sent())
        shares = self._gather(np.array([self._share]))
        if abs(shares.sum() - 1) > ROUNDING:
            found = shares.ravel().tolist()
            raise DesyncError(f"the shares of all ranks must add up to 1, got {found}: a push was lost")
        return bool(rows[:, 1].any())

    def _gather(self, own: np.ndarray) -> np.ndarray:
        """Return the arrays of all ranks, by rank; receives in the meantime."""
        of_all = np.empty((self._size, own.size), own.dtype)
        self._until(self._mpi.Iallgather(own, of_all).Test)
        return of_all

    def _mix(self) -> None:
        """Set the network to the sums of a_i w_i and of a_i v_i over the workers."""
        for group, own in zip(self._groups, self._own_values, strict=False):
            array = group.pack()
            np.copyto(own, array)
            array *= np.float32(self._share)
            self._channel.add_up(array)
            group.unpack()

    def _unmix(self) -> None:
        """Restore this worker's own weights and velocities in the network."""
        for group, own in zip(self._groups, self._own_values, strict=False):
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
