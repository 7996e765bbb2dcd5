"""SlowMo and DiLoCo: local steps, then the mean of the weights, then an outer update with a second momentum.

Each of N workers does H steps with its own velocities. All then compute the mean of their weights and apply the same
outer update, with the slow weights x of the last exchange, the inner rate lr of this step, and an outer momentum u:

    v_i <- mu v_i - lr_p (g_i + eta w_i),  w_i <- w_i + v_i        H times, on worker i only
    Delta = x - (1/N) sum of w_i
    u <- beta u + Delta / lr,  x <- x - alpha lr u                 SlowMo
    u <- beta u + Delta,       x <- x - alpha (Delta + beta u)     slowmo_nesterov: SGD with Nesterov momentum on Delta
    w_i <- x

SlowMo keeps u in units of a gradient, so that u does not depend on a rate that decays. The rate is that of the last
inner step. DiLoCo is slowmo_nesterov with slowmo_alpha=0.7 slowmo_beta=0.9 slowmo_buffers=maintain and a large H, 500
in the paper; its outer rate does not depend on the inner one. With beta = 0 and alpha = 1 the outer update returns the
mean. The rule is then rule bsp with average_every = H, to the bit, unless the velocities are reset.

slowmo_buffers selects what happens to the velocities, or accumulators, at an outer step:

    reset      they are set to zero
    maintain   they remain local; as in rule bsp with exchange_what=weights, they are averaged before a checkpoint
    average    they are averaged with the weights, which doubles the bytes

Running statistics of batch normalisation are averaged, without an outer update. The last step of an epoch and a step
before a checkpoint also end with an outer step, as in rule bsp. A checkpoint holds u, and x as the weights, which are
equal to x after an outer step. A resumed run is therefore bit-exact.

Source: Wang et al. 2020 (arXiv:1910.00643), algorithm 1, equations 2 and 3; line 2 of the algorithm and section 4 for
the velocities. Douillard et al. 2023 (arXiv:2311.08105), algorithm 1; Delta is their outer gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from alexnet.config import Config, Section
from alexnet.config.fields import Amount, Count, Share
from alexnet.training.base import StepResult
from multigpu.communicator import verify_consistency
from multigpu.exchange import ExchangeContext
from multigpu.exchange.flat_buffer import blocks
from multigpu.rules.averaging import AveragingRule, Bsp
from multigpu.rules.base import RULES
from multigpu.rules.groups import ParameterGroup, connect_groups, groups_of, weights_and_velocities

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device


class SlowmoSettings(Section):
    """How many local steps precede an outer step, and the constants of its update."""

    slowmo_steps: Count
    slowmo_alpha: Amount
    slowmo_beta: Share
    slowmo_nesterov: bool
    slowmo_buffers: Literal["reset", "maintain", "average"]

    def check(self) -> None:
        if self.slowmo_nesterov and not self.slowmo_beta:
            raise ValueError("slowmo_beta must be greater than 0 with slowmo_nesterov=true, got 0")


@RULES.register("slowmo")
class SlowmoRule(AveragingRule):
    """All workers average their weights after slowmo_steps local steps, and apply an outer update."""

    settings = (SlowmoSettings,)

    def averages_steps(self, config: Config) -> bool:
        return True                              # Wang et al. scale the rate of ImageNet with the batch: section 4

    def state(self, network: Network, config: Config) -> list[SharedVariable]:
        """Return the outer momentum. Its name states the form, because the two forms have different units."""
        from alexnet.training.updates import zeros_like  # it imports PyTensor, slowly

        name = "nesterov_momentum" if config.section(SlowmoSettings).slowmo_nesterov else "slow_momentum"
        return [zeros_like(parameter, name) for parameter in network.trainable_parameters]

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Slowmo:
        verify_consistency(config, network, device, comm, step)
        settings = config.section(SlowmoSettings)
        averaged = groups_of("weights_and_momentum" if settings.slowmo_buffers == "average" else "weights", network)
        if settings.slowmo_buffers == "reset":
            del averaged[1:]                     # velocities of zero need no mean
        groups = connect_groups(averaged, ExchangeContext(config, device, comm, (), recorder.warn, step))
        return Slowmo(network, groups, settings, comm, recorder)


class Slowmo(Bsp):
    """The Synchronizer of rule slowmo: that of rule bsp, which averages, and an outer step after each exchange.

    Args:
        network: its rule_state is the outer momentum.
        groups: the weights, perhaps with the velocities; then what is averaged before a checkpoint only.
    """

    every_setting = "slowmo_steps"

    def __init__(
        self, network: Network, groups: list[ParameterGroup], settings: SlowmoSettings, comm: Communicator,
        recorder: Recorder,
    ):
        super().__init__(network, groups, comm, recorder, settings.slowmo_steps)
        self._settings = settings
        self._weights = [parameter.variable for parameter in network.trainable_parameters]
        self._slow_weights = [np.array(variable.get_value(borrow=True)) for variable in self._weights]
        self._momentum = network.rule_state
        self._velocities = weights_and_velocities(network)[1]

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        result = super().after_step(step, cost, error, rate, stop, last)
        if self.exchanges_after(step, last):
            with self._recorder.time("comm"):
                self._outer_step(rate)
        return result

    def _outer_step(self, rate: float) -> None:
        """Update the weights, which hold the mean, and the outer momentum.

        On the host the arrays are changed in place, in the flat buffer. Those of a GPU are copied to the host and back.
        """
        alpha, beta = self._settings.slowmo_alpha, self._settings.slowmo_beta
        for variable, slow, momentum in zip(self._weights, self._slow_weights, self._momentum, strict=True):
            mean = host_array(variable)
            arrays = mean.reshape(-1), slow.reshape(-1), host_array(momentum).reshape(-1)
            if self._settings.slowmo_nesterov:
                nesterov_step(*arrays, alpha, beta)
            else:
                slow_momentum_step(*arrays, alpha, beta, rate)
            variable.set_value(mean, borrow=True)
        if self._settings.slowmo_buffers == "reset":
            for velocity in self._velocities:
                reset(velocity)


def slow_momentum_step(
    mean: np.ndarray, slow: np.ndarray, momentum: np.ndarray, alpha: float, beta: float, rate: float
) -> None:
    """Apply the outer update of SlowMo, in place; `mean` and `slow` become the new weights.

        Delta = x - mean,  u <- beta u + Delta / rate,  x <- x - alpha rate u

    It is computed as mean + (1 - alpha) Delta - alpha rate beta u, with the former u, which is the mean to the bit if
    alpha is 1 and beta 0.

    mean, slow, momentum  one-dimensional float arrays of the same length and dtype, without shared memory
    """
    for w, x, u, scratch in blocks(mean, slow, momentum):
        delta = np.subtract(x, w, out=x)
        add_scaled(w, u, -alpha * rate * beta, scratch)
        add_scaled(w, delta, 1 - alpha, scratch)
        u *= beta
        add_scaled(u, delta, 1 / rate, scratch)
        x[...] = w


def nesterov_step(mean: np.ndarray, slow: np.ndarray, momentum: np.ndarray, alpha: float, beta: float) -> None:
    """Apply the outer update of DiLoCo, in place; see slow_momentum_step for the arrays.

        Delta = x - mean,  u <- beta u + Delta,  x <- x - alpha (Delta + beta u)

    This is PyTorch's form of Nesterov momentum (SGD with nesterov=True), computed as mean + (1 - alpha) Delta -
    alpha beta u.
    """
    for w, x, u, scratch in blocks(mean, slow, momentum):
        delta = np.subtract(x, w, out=x)
        u *= beta
        u += delta
        add_scaled(w, u, -alpha * beta, scratch)
        add_scaled(w, delta, 1 - alpha, scratch)
        x[...] = w


def add_scaled(total: np.ndarray, term: np.ndarray, factor: float, scratch: np.ndarray) -> None:
    """total <- total + factor term, in place. A factor of 0 changes nothing, not even the sign of a zero."""
    if factor:
        np.multiply(term, factor, out=scratch)
        total += scratch


def host_array(variable: SharedVariable) -> np.ndarray:
    """Return the value of a variable: the array itself if it is on the host, else a copy."""
    value = variable.get_value(borrow=True)
    return value if isinstance(value, np.ndarray) else np.array(value)


def reset(variable: SharedVariable) -> None:
    """Set the value of a variable to zeros, in place on the host."""
    value = variable.get_value(borrow=True)
    if isinstance(value, np.ndarray):
        value.fill(0)
    else:
        variable.set_value(np.zeros(value.shape, np.float32), borrow=True)
