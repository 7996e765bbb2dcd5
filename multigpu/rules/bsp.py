"""Bulk synchronous parallel: after each step all workers exchange, so that all have the same weights.

With N workers, momentum mu, rates lr_p and weight decay eta, on the gradients g_i of worker i's batch:

    avg   v_i <- mu v_i - lr_p (g_i + eta w),  w_i <- w + v_i,  then  w <- (1/N) sum of w_i
    cdd   v_i <- mu v_i - lr_p (g_i + eta w),  V = sum of v_i,  then  w <- w + V

The setting exchange_what selects the exchanged arrays:

    weights_and_momentum   avg, with v <- (1/N) sum of v_i in addition.  Source: Ding et al. 2014, section 2.2
    weights                avg; the velocities remain local. Only their mean affects w, and it obeys the same equation.
                           They are averaged before a checkpoint, which then holds all of the state.
                           Source: Ma et al. 2016
    gradients              avg or cdd; average g_i, then apply one update. The sum of the cdd velocities obeys
                           V <- mu V - N lr_p (mean of g_i + eta w), so cdd is the update at N times the rate. It needs
                           one flat buffer of gradients, half the size of weights and momentum
    factors                the same, but the gradient of a dense layer's weights is exchanged as its factors where they
                           are smaller, and every worker computes the mean; see alexnet.training.factors

With overlap, the gradients of the last layers, which hold most of the bytes, are exchanged during the rest of the
backward pass (overlap.py). The groups and the order of each sum are the same without it, and so are all bits.

Adagrad and Adadelta are not linear. Only gradients make all workers equal to each other, and to one worker that trains
on the N batches together. Momentum is linear: avg at N lr, cdd at lr, and a single worker on the N batches together
at N lr follow the same trajectory up to rounding.
"""

from __future__ import annotations

import math
import platform
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from alexnet.config import Config, ConfigError, Section
from alexnet.config.fields import Count
from alexnet.native import compiler
from alexnet.training.base import StepResult, Synchronizer
from alexnet.training.loop import InputLost, StepAbandoned
from multigpu.communicator import Ready, SyncRemaining, TimingReport, total, verify_consistency
from multigpu.exchange import ExchangeContext, ExchangeSettings, Strategy, strategy_of, strategy_settings
from multigpu.rules.base import RULES, Rule
from multigpu.rules.overlap import EarlyExchange

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network, SharedVariable
    from alexnet.training.timing import Lap
    from multigpu.communicator import Communicator
    from multigpu.device import Device


BEFORE_UPDATE = ("gradients", "factors")         # values of exchange_what


class BspSettings(Section):
    """What rule bsp exchanges, and how often."""

    sync: Literal["avg", "cdd"]
    exchange_what: Literal["auto", "weights_and_momentum", "weights", "gradients", "factors"]
    average_every: Count
    overlap: bool
    running_statistics: Literal["average", "local"]

    def check(self) -> None:
        if self.sync == "cdd" and self.exchange_what not in ("auto", *BEFORE_UPDATE):
            raise ValueError(
                "exchange_what must be auto, gradients or factors with sync=cdd, which adds updates, got "
                f"{self.exchange_what}"
            )


class AveragingRule(Rule):
    """A rule whose workers average arrays with an exchange strategy, all at the same step."""

    needs_mpi = False
    synchronous = True

    @classmethod
    def sections(cls) -> tuple[type[Section], ...]:
        return (*cls.settings, ExchangeSettings, *strategy_settings())

    def check_job(self, config: Config, comm: Communicator) -> None:
        super().check_job(config, comm)
        if comm.size > 1 or "exchange" in config.given:
            self.check_strategy(strategy_of(config, comm), config, comm)

    def check_strategy(self, strategy: type[Strategy], config: Config, comm: Communicator) -> None:
        """Raise ConfigError if the rule cannot use the strategy with these settings. The default accepts all."""
        return None


@RULES.register("bsp")
class BspRule(AveragingRule):
    """All workers exchange after each step, or after each average_every steps."""

    settings = (BspSettings,)

    def check(self, config: Config) -> None:
        super().check(config)
        from alexnet.training.updates import UpdateSettings, find_update_rule  # it imports PyTensor, slowly

        settings = config.section(BspSettings)
        update = config.section(UpdateSettings).rule
        linear = find_update_rule(config).linear
        if not linear and settings.sync == "cdd":
            raise ConfigError(
                f"sync must be avg with update={update}, whose updates by the parts of a batch do not add up to that "
                "by the whole, got cdd"
            )
        if not linear and settings.exchange_what not in ("auto", *BEFORE_UPDATE):
            raise ConfigError(
                f"exchange_what must be auto, gradients or factors with update={update}, because the mean of the "
                f"workers' accumulators is not that of one worker, got {settings.exchange_what}"
            )
        gradients = settings.exchange_what in BEFORE_UPDATE or settings.sync == "cdd" or not linear
        if gradients and settings.average_every > 1:
            raise ConfigError(
                "average_every must be 1 when gradients are exchanged, because each is used only in its step, "
                f"got {settings.average_every}"
            )

    def averages_steps(self, config: Config) -> bool:
        return config.section(BspSettings).sync == "avg"

    def check_strategy(self, strategy: type[Strategy], config: Config, comm: Communicator) -> None:
        if exchanged(config, comm) == "factors" and not strategy.gathers:
            raise ConfigError(
                f"exchange_what=factors needs a strategy that gathers arrays, such as peer, ar or asa32, got "
                f"exchange={config.section(ExchangeSettings).exchange}"
            )

    def step_functions(self, config: Config, comm: Communicator) -> tuple[str, ...]:
        what = exchanged(config, comm)
        if what not in BEFORE_UPDATE:
            return ("train",)
        return ("compute_overlapped" if what == "factors" or overlaps(config, comm) else "compute", "apply")

    def configure(self, config: Config, network: Network, comm: Communicator) -> None:
        if exchanged(config, comm) == "factors" and comm.size > 1:
            network.use_factors(config.batch_size, comm.size)

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Bsp:
        verify_consistency(config, network, device, comm, step)
        what = exchanged(config, comm)
        settings = config.section(BspSettings)
        context = ExchangeContext(config, device, comm, (), recorder.warn, step)
        groups = connect_groups(groups_of(what, network, settings.running_statistics == "average"), context)
        if what not in BEFORE_UPDATE:
            return Bsp(network, groups, comm, recorder, settings.average_every)
        rates = comm.size if settings.sync == "cdd" else 1
        if self.step_functions(config, comm)[0] == "compute":
            return GradientBsp(network, groups, comm, recorder, rates)
        factors = None
        if network.factored:
            check_kernels(network, comm)
            layers = [network.gradients[n].type.shape for n in network.factored]
            factors = connect_strategy([(n, config.batch_size) for layer in layers for n in layer], context)
        gradients = groups.pop(0) if network.gradient_groups[0] else None
        early = EarlyExchange(factors, gradients, comm, step, overlaps(config, comm))
        network.early_gradients.receive = early.start
        return GradientBsp(network, groups, comm, recorder, rates, early)


def exchanged(config: Config, comm: Communicator) -> str:
    """Return what is exchanged; resolves `auto`.

    Between hosts, gradients are sent during the backward pass, which hides a part of the time that as many bytes of
    weights would add to each step. Factors are smaller, but need equal instruction sets, so `auto` never means them.
    """
    from alexnet.training.updates import find_update_rule  # it imports PyTensor, slowly

    settings = config.section(BspSettings)
    if settings.exchange_what != "auto":
        return settings.exchange_what
    if settings.sync == "cdd" or not find_update_rule(config).linear:
        return "gradients"
    if not comm.on_one_host and settings.average_every == 1 and overlaps(config, comm):
        return "gradients"
    return "weights" if comm.over_mpi else "weights_and_momentum"


def overlaps(config: Config, comm: Communicator) -> bool:
    """Return whether gradients are exchanged during the backward pass."""
    return config.section(BspSettings).overlap and comm.works_in_threads and strategy_of(config, comm).overlaps


def groups_of(what: str, network: Network, statistics: bool = True) -> list[list[SharedVariable]]:
    """Return the variables that are averaged together: first those of each exchange, then the rest of the state.

    Args:
        statistics: average the running statistics of batch normalisation, too.
    """
    if what in BEFORE_UPDATE:
        early, late = ([network.gradients[n] for n in group] for group in network.gradient_groups)
        return [early, late + (network.running_statistics if statistics else [])]
    weights, velocities = weights_and_velocities(network)
    if not statistics:
        local = set(network.running_statistics)
        weights = [variable for variable in weights if variable not in local]
    return [weights, velocities] if what == "weights" else [weights + velocities]


def weights_and_velocities(network: Network) -> tuple[list[SharedVariable], list[SharedVariable]]:
    """Return the shared variables that training changes: the weights, and the state of the update rule.

    The running statistics of batch normalisation are among the weights.
    """
    both = network.parameters_and_velocities
    n_weights = len(network.weights)
    return both[:n_weights], both[n_weights:]


def shapes_of(variables: list[SharedVariable]) -> list[tuple[int, ...]]:
    """Return the shape of each variable's value."""
    return [np.shape(variable.get_value(borrow=True)) for variable in variables]


class Kernels(NamedTuple):
    """The processor architecture of the sender, and the block size of its kernels, 0 for NumPy."""

    machine: str
    block: int
    step: int = 0


def check_kernels(network: Network, comm: Communicator) -> None:
    """Raise ConfigError unless all workers round the products of factors equally. Collective."""
    from alexnet.ops.kernels.convolution import block_size  # it imports PyTensor, slowly

    if not network.computes_on_host:
        return
    block = block_size() if compiler.compiler_available() else 0
    found = comm.allgather(Kernels(platform.machine(), block))
    for rank, kernels in enumerate(found):
        if kernels != found[0]:
            raise ConfigError(
                "exchange_what=factors needs the same instruction set on all workers, which compute the same products, "
                f"but workers 0 and {rank} differ: set isa=avx2, or isa=portable, for all"
            )


class ParameterGroup(NamedTuple):
    """Shared variables that are averaged together, and the Strategy whose flat buffer holds them."""

    variables: list[SharedVariable]
    strategy: Strategy

    def pack(self) -> None:
        """Copy the variables to the flat buffer."""
        self.strategy.flat.pack(self.variables)
        self.strategy.device.synchronise()

    def average(self, step: int) -> None:
        """Average the flat buffers of all workers, and copy the result to the variables."""
        self.strategy.average(step)
        self.unpack()

    def unpack(self) -> None:
        """Set the variables to the values in the flat buffer."""
        self.strategy.flat.unpack(self.variables)


def connect_strategy(shapes: list[tuple[int, ...]], context: ExchangeContext) -> Strategy:
    """Open the strategy of the settings for arrays of these shapes. Collective."""
    return strategy_of(context.config, context.comm).connect(context._replace(shapes=shapes))


def connect_groups(groups: list[list[SharedVariable]], context: ExchangeContext) -> list[ParameterGroup]:
    """Open a strategy for each group of variables that is not empty. Collective."""
    return [
        ParameterGroup(variables, connect_strategy(shapes_of(variables), context)) for variables in groups if variables
    ]


class Bsp(Synchronizer):
    """The Synchronizer of rule bsp for weights: a step of each worker, then the average.

    Args:
        groups: the first is averaged in each exchange, the others only if the whole state must be equal.
        every: number of steps between two exchanges.

    Attributes:
        every_setting: name of the setting that determines `every`, for error messages.
    """

    in_lockstep = True
    every_setting = "average_every"

    def __init__(
        self, network: Network, groups: list[ParameterGroup], comm: Communicator, recorder: Recorder, every: int = 1
    ):
        self._network = network
        self._groups = groups
        self._comm = comm
        self._recorder = recorder
        self._every = every
        self._totals = 0

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        return self._network.train(*inputs, rate)

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        if not self.exchanges_after(step, last):
            return StepResult(float(cost), float(error), False)
        groups = self._groups if last else self._groups[:1]
        result = self._average(groups, Ready(step, float(cost), float(error), bool(stop)))
        if result.stop and not last:
            self._average_remaining(step)
        return result

    def exchanges_after(self, step: int, last: bool) -> bool:
        """Return whether the workers exchange after this step; see after_step for `last`."""
        return last or step % self._every == 0

    def _average(self, groups: list[ParameterGroup], ready: Ready) -> StepResult:
        """Average groups of variables in this step; raise StepAbandoned if a worker cannot do it."""
        with self._recorder.time("comm"):
            for group in groups:
                group.pack()
        with self._recorder.time("sync"):
            all_ready = self._comm.allgather(ready)
        self._check(all_ready)
        with self._recorder.time("comm"), self._comm.waiting():
            for group in groups:
                group.average(ready.step)
        return mean_of(all_ready)

    def _check(self, all_ready: list[Ready]) -> None:
        """Raise StepAbandoned if a worker cannot do the step of these messages."""
        if any(math.isnan(message.cost) for message in all_ready):
            self.total(np.zeros(1), True)        # all wait until it is saved
            raise StepAbandoned(all_ready[0].step - 1)

    def abandon(self, step: int) -> bool:
        """See Synchronizer. A cost that is not a number notifies the others; the first worker without images saves.

        With exchange_what=weights the checkpoint holds the velocities of this worker instead of their mean.

        Raises:
            InputLost: the workers exchange less often, so that they have no common state.
        """
        if self._every > 1:
            raise InputLost(
                f"the images of step {step} do not arrive, and with {self.every_setting}={self._every} the workers "
                "have no common state that could be saved"
            )
        all_ready = self._comm.allgather(Ready(step, math.nan, math.nan, True))
        return [math.isnan(message.cost) for message in all_ready].index(True) == self._comm.rank

    def _average_remaining(self, step: int) -> None:
        """Average the remaining groups, because an unscheduled checkpoint follows."""
        with self._recorder.time("comm"), self._comm.waiting():
            for group in self._groups[1:]:
                group.pack()
                self._comm.allgather(SyncRemaining(step))
                group.average(step)

    def gather(self, lap: Lap) -> list[Lap]:
        laps = [each.lap for each in self._comm.allgather(TimingReport(lap.iteration, lap))]
        return laps if self._comm.rank == 0 else []

    def total(self, values: np.ndarray, stop: bool) -> tuple[np.ndarray, bool]:
        self._totals += 1
        return total(self._comm, self._totals, values, stop)

    def close(self) -> None:
        with self._comm.waiting():
            for group in self._groups:
                group.strategy.close()


class GradientBsp(Bsp):
    """The Synchronizer of rule bsp for gradients: backward pass, average, update.

    Args:
        groups: averaged in each step, after the backward pass.
        rates: factor of the learning rate: N for cdd.
        early: the exchange of the other gradients; None: `groups` contain all.
    """

    def __init__(
        self, network: Network, groups: list[ParameterGroup], comm: Communicator, recorder: Recorder, rates: int = 1,
        early: EarlyExchange | None = None,
    ):
        super().__init__(network, groups, comm, recorder)
        self._rates = rates
        self._early = early

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        return (self._network.compute_overlapped if self._early else self._network.compute)(*inputs)

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        factors = self._end_early(self._early) if self._early is not None else []
        result = self._average(self._groups, Ready(step, float(cost), float(error), bool(stop)))
        with self._recorder.time("calc"):
            self._network.apply(np.float32(self._rates * rate), *factors)
        return result

    def _end_early(self, early: EarlyExchange) -> list[np.ndarray]:
        """Wait for the end of the early exchange; return the factors in the order of Network.apply."""
        with self._recorder.time("sync"):
            all_ready = early.wait_ready()
        self._check(all_ready)
        began = time.perf_counter()
        with self._recorder.time("comm"), self._comm.waiting():
            seconds, gathered = early.finish()
        self._recorder.add("hidden", max(seconds - (time.perf_counter() - began), 0.0))
        layers = range(len(self._network.factored))
        return [arrays[2 * layer + n] for layer in layers for arrays in gathered for n in (0, 1)]

    def close(self) -> None:
        if self._early is not None:
            self._early.close()
        super().close()


def mean_of(messages: list[Ready]) -> StepResult:
    """Return the mean cost and error of the workers, and whether any of them has to stop."""
    n = len(messages)
    cost = sum(message.cost for message in messages) / n
    error = sum(message.error for message in messages) / n
    return StepResult(cost, error, any(message.stop for message in messages))
