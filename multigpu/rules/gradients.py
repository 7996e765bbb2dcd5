"""The Synchronizers of rule bsp that average gradients, before the update.

GradientBsp computes a step, averages the gradients, and updates the weights. ElasticBsp does the same in a job whose
launcher replaces a killed worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from alexnet.training.base import StepResult
from alexnet.training.loop import Position, Run, StepAbandoned, at_snapshot, train_and_save
from multigpu.communicator import PeerDied, Ready
from multigpu.device.host import HostDevice
from multigpu.exchange import ExchangeContext
from multigpu.launch.link import Stage
from multigpu.rules.averaging import Bsp
from multigpu.rules.groups import ParameterGroup
from multigpu.rules.overlap import EarlyExchange
from multigpu.rules.recovery import Recovery
from multigpu.rules.state_check import check_states

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network
    from multigpu.communicator import Communicator

OpenGroups = Callable[[ExchangeContext], tuple[list[ParameterGroup], EarlyExchange | None, bool]]


class GradientBsp(Bsp):
    """The Synchronizer of rule bsp for gradients: backward pass, average, update.

    Args:
        groups: averaged in each step, after the backward pass.
        early: the exchange of the other gradients; None: `groups` contain all.
        compares: whether all workers round the update equally, so that their states can be compared.
        rates: factor of the learning rate: N for cdd.
    """

    def __init__(
        self, network: Network, groups: list[ParameterGroup], early: EarlyExchange | None, comm: Communicator,
        recorder: Recorder, compares: bool = False, rates: int = 1,
    ):
        super().__init__(network, groups, comm, recorder)
        self._rates = rates
        self._early = early
        self._compares = compares

    def begin(self, position: Position) -> Position:
        self._check.begin()
        return position

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        if self._early is not None:
            self._early.state = self._state
        return (self._network.compute_overlapped if self._early else self._network.compute)(*inputs)

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        factors = self._end_early(self._early) if self._early is not None else []
        result = self._average(self._groups, Ready(step, float(cost), float(error), bool(stop), self._state))
        with self._recorder.time("calc"):
            self._network.apply(np.float32(self._rates * rate), *factors)
        self._state = self._check.written(step) if self._compares else None
        if self._state is not None and (last or result.stop):            # a checkpoint may follow
            check_states(self._comm.allgather(self._state))
        return result

    def _end_early(self, early: EarlyExchange) -> list[np.ndarray]:
        """Wait for the end of the early exchange; return the factors in the order of Network.apply."""
        with self._recorder.time("sync"):
            all_ready = early.wait_ready()
        self._require(all_ready)
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


class ElasticBsp(GradientBsp):
    """GradientBsp of a job whose launcher replaces a worker that has died, during the training.

    The others repeat the interrupted step together with the replacement, which gets its state from one of them.

    Args:
        open_groups: opens the groups and the early exchange of GradientBsp, and returns `compares`. Collective.
        context: its argument; the device is replaced by one that has no other buffers.
    """

    def __init__(
        self, network: Network, open_groups: OpenGroups, context: ExchangeContext, recorder: Recorder, rates: int
    ):
        super().__init__(network, [], None, context.comm, recorder, rates=rates)
        self._open_groups = open_groups
        self._context = context
        self._device = HostDevice(context.device.on_host)
        self._recovery = Recovery(network, context.comm)
        self._received = False                   # whether the state was received since the last step
        recorder.keep = self._recovery.keep
        if context.comm.replaces:
            self._join()
        else:
            self._open(context.step)

    def begin(self, position: Position) -> Position:
        if self._recovery.position is None:
            self._recovery.advance(position)
        assert self._recovery.position is not None
        return self._recovery.position

    def run(self, run: Run, position: Position) -> Position:
        run = run._replace(advanced=self._recovery.advance)
        self._comm.set_stage(Stage.TRAINING)
        while True:
            with suppress(PeerDied):             # here, so that the interrupted reading of batches is closed
                return self._train(run)
            self._recover()

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        self._recovery.begin_step()
        return super().step(*inputs, rate=rate)

    def close(self) -> None:
        super().close()
        self._device.close()

    def _train(self, run: Run) -> Position:
        """Train from the position of the state; all workers wait until the final checkpoint is saved."""
        position = self._recovery.position
        assert position is not None
        if self._received and self._comm.rank == 0:
            self._make_up(run, position)
        self._received = False
        try:
            position = train_and_save(run, position)
        except StepAbandoned as end:             # a worker has lost its images; its error ends the run
            return position._replace(iteration=end.iteration)
        self.total(np.zeros(1), False)
        self._comm.set_stage(Stage.ENDED)
        return position

    def _make_up(self, run: Run, position: Position) -> None:
        """Record the last step and save its checkpoint, if rank 0 has not done it before it died."""
        record = self._recovery.record
        if record is not None and self._recorder.recorded < position.iteration:
            self._recorder.train_iteration(**record)
        if position.iteration and at_snapshot(run, position):
            run.save(position)

    def _recover(self) -> None:
        """Continue from the last complete step with the replacement of a dead worker."""
        self._comm.recover()
        self._join()
        self._recorder.reset()

    def _join(self) -> None:
        """Share the state and open the buffers; repeat both if another worker dies."""
        while True:
            with suppress(PeerDied):
                self._received |= self._recovery.share()
                assert self._recovery.position is not None
                step = self._recovery.position.iteration
                self._open(step)
                self._recorder.log(f"a worker was replaced; continuing after iteration {step}")
                return
            self._comm.recover()

    def _open(self, step: int) -> None:
        """Open the buffers, after those of the former workers are closed. No exchange is running. Collective."""
        self._early = None
        self._groups = []
        self._device.keep_memory()
        context = self._context._replace(device=self._device, step=step)
        self._groups, self._early, self._compares = self._open_groups(context)
        self._check.begin()
        self._state = None
        self._totals = 0
