"""What the rules bsp and slowmo share: all workers average their weights at the same step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from alexnet.config import Config, Section
from alexnet.training.base import StepResult, Synchronizer
from alexnet.training.loop import InputLost, StepAbandoned
from multigpu.communicator import Ready, StateDigest, SyncRemaining, TimingReport, total
from multigpu.exchange import ExchangeSettings, Strategy, strategy_of, strategy_settings
from multigpu.rules.base import Rule
from multigpu.rules.groups import ParameterGroup
from multigpu.rules.state_check import StateCheck, check_states

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network
    from alexnet.training.timing import Lap
    from multigpu.communicator import Communicator


class AveragingRule(Rule):
    """A rule whose workers average arrays with an exchange strategy, all at the same step."""

    needs_mpi = False
    synchronous = True

    def configure(self, config: Config, network: Network, comm: Communicator) -> None:
        """Sum the bits of the weights after each exchange, which are equal on all workers."""
        network.sum_state(read=len(network.trainable_parameters), written=0)

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
        self._check = StateCheck(network)
        self._state: StateDigest | None = None   # after the last exchange; None: unknown
        self._totals = 0

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        return self._network.train(*inputs, rate)

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        if self._state is None:
            self._state = self._check.read(step - 1)
        if not self.exchanges_after(step, last):
            return StepResult(float(cost), float(error), False)
        groups = self._groups if last else self._groups[:1]
        result = self._average(groups, Ready(step, float(cost), float(error), bool(stop), self._state))
        self._state = None
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
        self._require(all_ready)
        with self._recorder.time("comm"), self._comm.waiting():
            for group in groups:
                group.average(ready.step)
        return mean_of(all_ready)

    def _require(self, all_ready: list[Ready]) -> None:
        """Raise StepAbandoned if a worker cannot do the step of these messages, StateDamaged if their states differ."""
        check_states([message.state for message in all_ready])
        if any(math.isnan(message.cost) for message in all_ready):
            self.total(np.zeros(1), True)        # all wait until it is saved
            raise StepAbandoned(all_ready[0].step - 1)

    def abandon(self, step: int) -> bool:
        """See Synchronizer. A cost that is not a number notifies the others; the first worker without images saves.

        With exchange_what=weights the checkpoint holds the velocities of this worker instead of their mean.

        Raises:
            InputLost: the workers exchange less often, so that they have no common state.
            StateDamaged: their states differ.
        """
        if self._every > 1:
            raise InputLost(
                f"the images of step {step} do not arrive, and with {self.every_setting}={self._every} the workers "
                "have no common state that could be saved"
            )
        all_ready = self._comm.allgather(Ready(step, math.nan, math.nan, True, self._state))
        check_states([message.state for message in all_ready])
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


def mean_of(messages: list[Ready]) -> StepResult:
    """Return the mean cost and error of the workers, and whether any of them has to stop."""
    n = len(messages)
    cost = sum(message.cost for message in messages) / n
    error = sum(message.error for message in messages) / n
    return StepResult(cost, error, any(message.stop for message in messages))
