"""NoLoCo: local steps, then an outer step by each of many random pairs of workers, without an exchange of all workers.

Each worker i has fast weights theta_i, slow weights phi_i, which are those after its last outer step, and an outer
momentum m_i. After every H steps the workers form random disjoint pairs. The means are over the two of a pair:

    v_i <- mu v_i - lr_p (g_i + eta w_i),  theta_i <- theta_i + v_i          H times, on worker i only
    m_i <- alpha m_i + beta mean(theta - phi) + gamma (mean(phi) - phi_i)
    phi_i <- phi_i + m_i,  theta_i <- phi_i

All workers draw the same pairs, from the seed and the step. With an odd number of workers one is its own partner. A
worker waits only for its partner, so a slow worker does not delay the others. The velocities remain local.

The term of gamma pulls the slow weights of a pair together. It adds up to 0, so the means over all workers obey, with
any pairs and any gamma,

    m <- alpha m + beta (theta - phi),  phi <- phi + m

which is the outer update of rule slowmo with slowmo_alpha = beta, slowmo_beta = alpha and a constant learning rate.
Two workers always have equal slow weights. They are then rule slowmo with slowmo_buffers=maintain, up to rounding.

With gamma = beta, the default, the two terms add up to beta (mean(theta) - phi_i), so a pair exchanges the fast weights
only. Any other gamma also needs the slow weights, and doubles the bytes. Running statistics of batch normalisation are
averaged by a pair, without an outer update.

The outer step is symmetric: a pair that does not complete its exchange because of a stop request does no outer step.
A consensus (multigpu.rules.gossip) averages theta, the velocities, m, and theta - phi, and a checkpoint holds them.
Validation and saving do not change the training. A resumed run continues from these means, so it is bit-exact only if
the state of all workers is equal: that of two workers at an outer step, if the update rule has no velocities.

Source: Kolehmainen et al. 2025 (arXiv:2506.10911), equation 2 with the sign of the outer gradient corrected, as in
equation 32 and in the authors' code. In that code gamma is equal to beta.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from alexnet.config import Config, Section
from alexnet.config.fields import Amount, Count, NotNegative, Share
from alexnet.data.augment import random_stream
from alexnet.training.base import StepResult
from multigpu.communicator import Message, verify_consistency
from multigpu.exchange.flat_buffer import blocks
from multigpu.rules.base import RULES, Rule
from multigpu.rules.gossip import Gossip, WeightedGroup, host_groups
from multigpu.rules.groups import weights_and_velocities

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.mpi.communicator import MPI

PAIRS = 5                                        # id of the random stream; multigpu.rules.gosgd uses 3


class PairPush(NamedTuple):
    """Announces the sender's weights, for the outer step after this step."""

    step: int
    sender: int


class NolocoSettings(Section):
    """How many local steps precede an outer step, and the constants of its update."""

    noloco_steps: Count
    noloco_alpha: Share
    noloco_beta: Amount
    noloco_gamma: NotNegative | None

    @property
    def gamma(self) -> float:
        """noloco_gamma, or noloco_beta if that is null."""
        return self.noloco_beta if self.noloco_gamma is None else self.noloco_gamma


@RULES.register("noloco")
class NolocoRule(Rule):
    """Random pairs of workers average after noloco_steps local steps, and apply an outer update."""

    settings = (NolocoSettings,)

    def state(self, network: Network, config: Config) -> list[SharedVariable]:
        """Return the outer momenta, and then the outer gradients theta - phi. A checkpoint holds their means."""
        from alexnet.training.updates import zeros_like  # it imports PyTensor, slowly

        names = "outer_momentum", "outer_gradient"
        return [zeros_like(parameter, name) for name in names for parameter in network.trainable_parameters]

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Noloco:
        verify_consistency(config, network, device, comm, step)
        weights, velocities = weights_and_velocities(network)
        n = len(network.rule_state) // 2         # trainable parameters, the first of the weights
        exchanged = host_groups([weights[:n], weights[n:]], device)
        momentum, gradient = host_groups([list(network.rule_state[:n]), list(network.rule_state[n:])], device)
        state = NolocoState(exchanged, momentum, gradient, host_groups([velocities], device))
        return Noloco(network, state, config, comm, recorder, step)


def partner(seed: int, rank: int, size: int, step: int) -> int:
    """Return the partner of a worker in the outer step after `step`; without a partner, the worker itself."""
    order = random_stream(seed, PAIRS, 0, step).permutation(size).tolist()
    place = order.index(rank) ^ 1                # the first and the second are a pair, and so on
    return order[place] if place < size else rank


def outer_step(
    fast: np.ndarray, slow: np.ndarray, momentum: np.ndarray, partner_fast: np.ndarray,
    partner_slow: np.ndarray | None, alpha: float, beta: float, gamma: float,
) -> None:
    """Apply the outer update to one worker of a pair, in place; `fast` and `slow` become the new weights.

        m <- alpha m + beta mean(theta - phi) + gamma (mean(phi) - phi),  phi <- phi + m,  theta <- phi

    It is computed as m <- alpha m + beta (mean(theta) - phi) + (gamma - beta) (mean(phi) - phi). A worker without a
    partner passes its own fast weights.

    Args:
        fast, slow, momentum, partner_fast: one-dimensional float arrays of the same length and dtype.
        partner_slow: the same; None if gamma is equal to beta, or without a partner.
    """
    for theta, phi, m, theirs, scratch in blocks(fast, slow, momentum, partner_fast):
        np.add(theta, theirs, out=theta)
        theta *= 0.5
        np.subtract(theta, phi, out=scratch)
        scratch *= beta
        m *= alpha
        m += scratch
    if partner_slow is not None:
        for phi, m, theirs, scratch in blocks(slow, momentum, partner_slow):
            np.subtract(theirs, phi, out=scratch)
            scratch *= (gamma - beta) / 2        # mean(phi) - phi is half of the difference
            m += scratch
    for theta, phi, m, _ in blocks(fast, slow, momentum):
        phi += m
        theta[...] = phi


class NolocoState(NamedTuple):
    """What a worker changes: what pairs exchange (weights, perhaps running statistics), outer state, velocities."""

    exchanged: list[WeightedGroup]
    momentum: WeightedGroup
    gradient: WeightedGroup
    velocities: list[WeightedGroup]


class Noloco(Gossip):
    """The Synchronizer of rule noloco.

    Args:
        state: the outer gradient contains theta - phi of the checkpoint, or zeros.
        step: number of steps done before.
    """

    announcement = PairPush

    def __init__(
        self, network: Network, state: NolocoState, config: Config, comm: Communicator, recorder: Recorder,
        step: int = 0,
    ):
        groups = [*state.exchanged, state.momentum, *state.velocities]
        own_values = [np.empty_like(group.flat.array()) for group in groups]
        super().__init__(network, groups, own_values, config, comm, recorder)
        settings = config.section(NolocoSettings)
        self._every = settings.noloco_steps
        self._constants = settings.noloco_alpha, settings.noloco_beta, settings.gamma
        self._exchanged = state.exchanged
        self._weights = state.exchanged[0]
        self._momentum = state.momentum
        self._gradient = state.gradient
        self._slow_weights = self._weights.pack() - self._gradient.pack()
        n = len(state.exchanged)                 # arrivals precede a consensus, so they use the same memory
        self._arrivals = own_values[:n]
        self._slow_arrival = None if settings.gamma == settings.noloco_beta else own_values[n]
        self._done = step                        # the last outer step came after this step
        self._awaited: PairPush | None = None    # of the partner, while this worker waits for it
        self._pushes: list[PairPush] = []        # that have been announced; their arrays are still in transit
        self._sending: list[MPI.Request] = []

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        with self._recorder.time("comm"):
            self._receive_after(step)
        if stop:
            self._notify_of_stop()
        if step % self._every == 0:
            self._exchange(step)
        return StepResult(float(cost), float(error), self._stop)

    def _exchange(self, step: int) -> None:
        """Do the outer step after this step. If a worker stops first, _settle() completes or drops it."""
        other = partner(self._seed, self._rank, self._size, step)
        with self._recorder.time("comm"):
            arrays = [group.pack() for group in self._exchanged]
            if other == self._rank:
                self._begin(step)
                self._update(arrays, None)
                return
            self._push(step, other, arrays)
        with self._recorder.time("sync"):
            self._until(lambda: self._has_arrived() or self._stop)
        if self._has_arrived():
            with self._recorder.time("comm"):
                self._complete(PairPush(step, other))

    def _push(self, step: int, other: int, arrays: list[np.ndarray]) -> None:
        """Send the weights to the partner; they do not change before they have been sent."""
        self._awaited = PairPush(step, other)
        for push in self._pushes:
            if push.sender == other and push != self._awaited:
                self._refuse(push)
        self._channel.send(PairPush(step, self._rank), other)
        slow = [] if self._slow_arrival is None else [self._slow_weights]
        self._sending = [self._mpi.Isend(array, other, self._channel.ARRAY) for array in (*arrays, *slow)]

    def _accept(self, message: Message) -> None:
        if type(message) is not PairPush or not self._is_due(message):
            self._refuse(message)
        self._pushes.append(message)

    def _is_due(self, push: PairPush) -> bool:
        """Return whether this worker still has to do the outer step of a push, with the sender as its partner."""
        due = push.step > self._done and partner(self._seed, self._rank, self._size, push.step) == push.sender
        if self._stop:                           # this worker may have left an outer step that the sender has done
            return due
        if self._awaited is not None and push.sender == self._awaited.sender:
            return push == self._awaited
        return due and all(other.sender != push.sender for other in self._pushes)

    def _refuse(self, message: Message) -> NoReturn:
        """Raise DesyncError for a message that this worker does not expect."""
        step = f"a step after {self._done}" if self._awaited is None else f"step {self._awaited.step}"
        self._channel.refuse(message, f"PairPush of {step}")

    def _has_arrived(self) -> bool:
        """Return whether the partner has announced its push."""
        return self._awaited in self._pushes

    def _complete(self, push: PairPush) -> None:
        """Receive the partner's arrays, and do the outer step once those of this worker have been sent."""
        self._begin(push.step)
        self._receive_arrays(push)
        self._until(self._is_sent)
        self._update(self._arrivals, self._slow_arrival)

    def _begin(self, step: int) -> None:
        """Begin an outer step that cannot be dropped any more: the partner may already send the next push."""
        self._done = step
        self._awaited = None

    def _receive_arrays(self, push: PairPush) -> None:
        """Receive the arrays of a push that has been announced."""
        arrivals = self._arrivals if self._slow_arrival is None else [*self._arrivals, self._slow_arrival]
        self._pushes.remove(push)
        requests = [self._mpi.Irecv(array, push.sender, self._channel.ARRAY) for array in arrivals]
        self._until(lambda: all(request.Test() for request in requests))

    def _is_sent(self) -> bool:
        """Return whether the last push has been sent."""
        return all(request.Test() for request in self._sending)

    def _update(self, arrivals: list[np.ndarray], slow_arrival: np.ndarray | None) -> None:
        """Apply the outer update with the partner's arrays to the weights, which have been packed."""
        fast = self._weights.flat.array()
        outer_step(fast, self._slow_weights, self._momentum.pack(), arrivals[0], slow_arrival, *self._constants)
        self._momentum.unpack()
        for group, arrival in zip(self._exchanged[1:], arrivals[1:], strict=True):
            statistics = group.flat.array()
            statistics += arrival
            statistics *= 0.5
        for group in self._exchanged:
            group.unpack()

    def _settle(self) -> None:
        """Complete the outer step that both of a pair have begun, and drop a push that only one of them has sent."""
        for push in list(self._pushes):
            if push == self._awaited:
                self._complete(push)
            else:
                self._receive_arrays(push)
        self._until(self._is_sent)
        self._awaited = None

    def _mix(self) -> None:
        """Set the network to the means, the outer gradient included, which no step changes."""
        np.subtract(self._weights.pack(), self._slow_weights, out=self._gradient.flat.array())
        super()._mix()
        self._add_up(self._gradient)

    def close(self) -> None:
        super().close()
        self._gradient.flat.close()
