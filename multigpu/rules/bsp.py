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

Adagrad, Adadelta, LARS and clipping (clip_norm) are not linear. Only gradients make all workers equal to each other,
and to one worker that trains on the N batches together. Momentum is linear: avg at N lr, cdd at lr, and a single
worker on the N batches together at N lr follow the same trajectory up to rounding.
"""

from __future__ import annotations

import platform
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from alexnet.config import Config, ConfigError, Section
from alexnet.config.fields import Count
from alexnet.training.update_settings import nonlinear_setting
from multigpu.communicator import verify_consistency
from multigpu.exchange import ExchangeContext, ExchangeSettings, Strategy, strategy_of
from multigpu.rules.averaging import AveragingRule, Bsp
from multigpu.rules.base import RULES
from multigpu.rules.gradients import ElasticBsp, GradientBsp
from multigpu.rules.groups import BEFORE_UPDATE, ParameterGroup, connect_groups, connect_strategy, groups_of
from multigpu.rules.overlap import EarlyExchange

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network
    from multigpu.communicator import Communicator
    from multigpu.device import Device


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


@RULES.register("bsp")
class BspRule(AveragingRule):
    """All workers exchange after each step, or after each average_every steps."""

    settings = (BspSettings,)
    combines_batches = True

    def check(self, config: Config) -> None:
        super().check(config)
        settings = config.section(BspSettings)
        nonlinear = nonlinear_setting(config)
        if nonlinear and settings.sync == "cdd":
            raise ConfigError(
                f"sync must be avg with {nonlinear}, because the updates by the parts of a batch do not add up to that "
                "by the whole, got cdd"
            )
        if nonlinear and settings.exchange_what not in ("auto", *BEFORE_UPDATE):
            raise ConfigError(
                f"exchange_what must be auto, gradients or factors with {nonlinear}, because the mean of the workers' "
                f"updates is not that of one worker, got {settings.exchange_what}"
            )
        if settings.exchange_what == "factors" and config.micro_batches > 1:
            raise ConfigError(
                "micro_batch_size must be null with exchange_what=factors, which are those of a whole batch, got "
                f"{config.micro_batch_size}"
            )
        gradients = settings.exchange_what in BEFORE_UPDATE or settings.sync == "cdd" or nonlinear
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
        what = exchanged(config, comm)
        if what in BEFORE_UPDATE:
            network.sum_state(read=0)
        elif what == "weights":
            super().configure(config, network, comm)
        else:
            network.sum_state(written=0)
        if what == "factors" and comm.size > 1:
            network.use_factors(config.batch_size, comm.size)

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Bsp:
        what = exchanged(config, comm)
        settings = config.section(BspSettings)
        context = ExchangeContext(config, device, comm, (), recorder.warn, step)
        if what in BEFORE_UPDATE:
            rates = comm.size if settings.sync == "cdd" else 1
            if comm.recovers and device.name == "cpu" and keeps_state_equal(network, settings):
                return ElasticBsp(network, partial(self.open, network), context, recorder, rates)
            groups, early, compares = self.open(network, context)
            return GradientBsp(network, groups, early, comm, recorder, compares, rates)
        verify_consistency(config, network, device, comm, step)
        groups = connect_groups(groups_of(what, network, settings.running_statistics == "average"), context)
        return Bsp(network, groups, comm, recorder, settings.average_every)

    def open(
        self, network: Network, context: ExchangeContext
    ) -> tuple[list[ParameterGroup], EarlyExchange | None, bool]:
        """Open the buffers for gradients and factors; return the arguments of GradientBsp. Collective."""
        config, device, comm = context.config, context.device, context.comm
        verify_consistency(config, network, device, comm, context.step)
        statistics = config.section(BspSettings).running_statistics == "average"
        groups = connect_groups(groups_of("gradients", network, statistics), context)
        compares = compare_kernels(network, context)
        if self.step_functions(config, comm)[0] == "compute":
            return groups, None, compares
        factors = None
        if network.factored:
            layers = [network.gradients[n].type.shape for n in network.factored]
            factors = connect_strategy([(n, config.batch_size) for layer in layers for n in layer], context)
        gradients = groups.pop(0) if network.gradient_groups[0] else None
        early = EarlyExchange(factors, gradients, comm, context.step, overlaps(config, comm))
        network.early_gradients.receive = early.start
        return groups, early, compares


def exchanged(config: Config, comm: Communicator) -> str:
    """Return what is exchanged; resolves `auto`.

    Between hosts, gradients are sent during the backward pass, which hides a part of the time that as many bytes of
    weights would add to each step. Factors are smaller, but need equal instruction sets, so `auto` never means them.
    """
    settings = config.section(BspSettings)
    if settings.exchange_what != "auto":
        return settings.exchange_what
    if settings.sync == "cdd" or nonlinear_setting(config):
        return "gradients"
    if not comm.on_one_host and settings.average_every == 1 and overlaps(config, comm):
        return "gradients"
    return "weights" if comm.over_mpi else "weights_and_momentum"


def keeps_state_equal(network: Network, settings: BspSettings) -> bool:
    """Return whether all of the state is the same on all workers after each step."""
    return settings.running_statistics == "average" or not network.running_statistics


def overlaps(config: Config, comm: Communicator) -> bool:
    """Return whether gradients are exchanged during the backward pass."""
    return config.section(BspSettings).overlap and comm.works_in_threads and strategy_of(config, comm).overlaps


class Kernels(NamedTuple):
    """The processor architecture of the sender, empty on a GPU, and Network.kernel_block.

    sums: whether its network sums the bits of the state.
    """

    machine: str
    block: int
    sums: bool
    step: int = 0


def compare_kernels(network: Network, context: ExchangeContext) -> bool:
    """Return whether all workers round updates equally and sum the bits of their states. Collective.

    Raises:
        ConfigError: the products of factors would differ.
    """
    found = context.comm.allgather(kernels_of(network))
    differing = next((rank for rank, kernels in enumerate(found) if kernels != found[0]), None)
    if differing is None:
        return network.sums_written is not None
    if network.factored:
        raise ConfigError(
            "exchange_what=factors needs the same instruction set on all workers, which compute the same products, "
            f"but workers 0 and {differing} differ: set isa=avx2, or isa=portable, for all"
        )
    if context.comm.rank == 0:
        context.warn(
            f"workers 0 and {differing} have other processors or kernels, so that their weights may drift apart by "
            "rounding: set isa=avx2, or isa=portable, for all"
        )
    return False


def kernels_of(network: Network) -> Kernels:
    """Return the Kernels of this worker."""
    machine = platform.machine() if network.computes_on_host else ""
    return Kernels(machine, network.kernel_block, network.sums_written is not None)
