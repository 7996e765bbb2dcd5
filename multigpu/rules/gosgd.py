"""Gossip SGD: after a step, a worker pushes its weights to another worker with some probability, without waiting.

    v_i <- mu v_i - lr_p (g_i + eta w_i),  w_i <- w_i + v_i          each step, on worker i only
    a_s <- a_s / 2;  push (w_s, a_s) to r                            with probability p, r uniformly another worker
    w_r <- (a_r w_r + a_s w_s) / (a_r + a_s),  a_r <- a_r + a_s      on arrival

a_i is the share of worker i and starts at 1/N. The sum of all a and the sum of all a w, including messages in transit,
are invariant. The sum of a_i w_i is the consensus, which is validated and saved.

A push is a GossipPush message with the share, and an array. Each worker has at most one push in transit, sent from a
copy of its weights. A worker that needs to push again waits for the previous push and receives in the meantime, so
even p = 1 cannot deadlock.

The consensus, stop requests and resuming are those of multigpu.rules.gossip, with the shares as weights. Once no
message is in transit, the shares must add up to 1. In a resumed run, all workers start from the consensus with 1/N.

Source: Blot et al. 2016, algorithms 3 and 4; Ma et al. 2016.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alexnet.config import Config, Section
from alexnet.config.fields import Fraction
from alexnet.data.augment import random_stream
from alexnet.training.base import StepResult
from multigpu.communicator import DesyncError, Message, verify_consistency
from multigpu.exchange.flat_buffer import blocks
from multigpu.rules.base import RULES, Rule
from multigpu.rules.gossip import Gossip, WeightedGroup, host_groups
from multigpu.rules.groups import weights_and_velocities

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.mpi.communicator import MPI

GOSSIP = 3                                       # id of the random stream; alexnet.data.augment uses 1, 2, 6 and 7
ROUNDING = 1e-9                                  # tolerance for the sum of all shares


class GossipPush(NamedTuple):
    """Announces an array: the weights after this step, with this share."""

    step: int
    sender: int
    share: float


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
        return Gosgd(network, host_groups(weights_and_velocities(network), device), config, comm, recorder)


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


class Gosgd(Gossip):
    """The Synchronizer of rule gosgd.

    Args:
        groups: the weights, and the velocities if there are any.
    """

    announcement = GossipPush

    def __init__(
        self, network: Network, groups: list[WeightedGroup], config: Config, comm: Communicator, recorder: Recorder,
    ):
        scratch = np.empty_like(groups[-1].flat.array())
        self._push_buffer = np.empty_like(groups[0].flat.array())
        self._arrival_buffer = scratch[: self._push_buffer.size]
        own_values = [self._push_buffer, scratch][: len(groups)]
        super().__init__(network, groups, own_values, config, comm, recorder)
        self._p = config.section(GosgdSettings).gosgd_p
        self._weights = groups[0]
        self._sending: MPI.Request | None = None
        self._arriving: tuple[GossipPush, MPI.Request] | None = None

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        with self._recorder.time("comm"):
            self._receive_after(step)
        if (other := receiver(self._seed, self._rank, self._size, step, self._p)) is not None:
            self._push(step, other)
        if stop:
            self._notify_of_stop()
        return StepResult(float(cost), float(error), self._stop)

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

    def _receive(self) -> bool:
        """Receive one message, or the array that the last message announced; returns whether anything arrived."""
        return self._receive_array() if self._arriving else super()._receive()

    def _accept(self, message: Message) -> None:
        if type(message) is not GossipPush:
            self._channel.refuse(message, "Push or Stop")
        self._arriving = message, self._mpi.Irecv(self._arrival_buffer, message.sender, self._channel.ARRAY)

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

    def _settle(self) -> None:
        """Wait for the pushes in transit; raise DesyncError if one is lost."""
        self._until(lambda: not self._arriving and self._is_sent())
        shares = self._gather(np.array([self._share]))
        if abs(shares.sum() - 1) > ROUNDING:
            found = shares.ravel().tolist()
            raise DesyncError(f"the shares of all ranks must add up to 1, got {found}: a push was lost")
