"""The rule of a job with a single worker: no exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alexnet.config import Config
from alexnet.training.base import StepResult, Synchronizer
from multigpu.rules.base import Rule
from multigpu.rules.state_check import StateCheck

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.loop import Position
    from alexnet.training.network import Network
    from multigpu.communicator import Communicator
    from multigpu.device import Device


class SingleWorker(Synchronizer):
    """Synchronizer for a single worker."""

    def __init__(self, network: Network):
        self._network = network
        self._check = StateCheck(network)

    def begin(self, position: Position) -> Position:
        self._check.begin()
        return position

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        return self._network.train(*inputs, rate)

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        self._check.require_intact(step)
        return StepResult(float(cost), float(error), stop)

    def abandon(self, step: int) -> bool:
        return True

    def total(self, values: np.ndarray, stop: bool) -> tuple[np.ndarray, bool]:
        return np.array(values, dtype=np.float64), stop

    def close(self) -> None:
        """Do nothing; there are no resources to release."""


class Single(Rule):
    """Training without an exchange; used for one worker, whatever its rule."""

    needs_mpi = False
    synchronous = True
    combines_batches = True

    def configure(self, config: Config, network: Network, comm: Communicator) -> None:
        network.sum_state()

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> SingleWorker:
        return SingleWorker(network)
