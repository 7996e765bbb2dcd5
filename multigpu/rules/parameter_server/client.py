"""A client of a parameter server: trains independently, and exchanges with the server when its rule requires it.

Source: Zhang et al. 2015, algorithm 1; Paine et al. 2013, section 2.3.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from alexnet.training.base import Record, Recorder, StepResult, Synchronizer
from alexnet.training.loop import Position, Run, train
from alexnet.training.timing import Lap
from multigpu.communicator import WorkerInfo
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.parameter_server.protocol import (
    SERVER,
    Fetch,
    Grant,
    Join,
    Joined,
    Leave,
    LeaveAck,
    Note,
    Push,
    pack_records,
)

if TYPE_CHECKING:
    from alexnet.training.network import Network, SharedVariable
    from multigpu.mpi.channel import Channel  # importing it initialises MPI


class Client(Synchronizer):
    """The Synchronizer of a worker with a parameter server. A rule implements contact().

    Args:
        variables: the exchanged shared variables.
        flat: their buffer, on the host.

    Attributes:
        info: what to join with, if the rule is elastic; None: the workers have already verified consistency.
    """

    info: WorkerInfo | None = None

    def __init__(
        self, network: Network, variables: list[SharedVariable], flat: FlatBuffer, channel: Channel,
        recorder: Recorder,
    ):
        self._network = network
        self._variables = variables
        self._flat = flat
        self._channel = channel
        self._recorder = recorder
        self._records: list[Record] = []
        self._laps: list[Lap] = []
        self._stop = False
        self._end = 0
        recorder.keep = self._records.append
        flat.pack(variables)
        flat.unpack(variables)                   # on the host, the variables now use the buffer's memory

    def run(self, run: Run, position: Position) -> Position:
        """Train without validation, which the server does, then leave."""
        if self.info:
            position = self._join(position, self.info)
        position = train(run._replace(config=run.config.model_copy(update={"validation": False})), position)
        self.leave(position.iteration)
        return position

    def _join(self, position: Position, info: WorkerInfo) -> Position:
        """Join the server, independent of other clients; returns the Position to start at."""
        step = position.iteration
        self._channel.send(Join(step, self._channel.rank, info), SERVER)
        joined = self._channel.recv(Joined, step, SERVER)
        self._stop = joined.stop
        if joined.moved and not joined.stop:
            self.catch_up(joined.position.iteration)
        return joined.position

    def catch_up(self, step: int) -> None:
        """Fetch the current center variable, to start after this step."""
        raise NotImplementedError

    def leave(self, step: int) -> None:
        """Notify the server that this step was the last."""
        self._end = step
        self._channel.send(Leave(step, self._channel.rank, *self._unsent(), self._stop, self.note()), SERVER)

    def note(self) -> Note:
        """Return the data of this client for the rule's CenterPolicy."""
        return None

    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        return self._network.train(*inputs, rate)

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        self._stop = self._stop or bool(stop)
        if not self._stop:
            stop = self.contact(step)
        return StepResult(float(cost), float(error), bool(stop))

    @abstractmethod
    def contact(self, step: int) -> bool:
        """Exchange with the server if it is due after this step; returns whether all workers stop."""

    def ask(self, kind: type[Push] | type[Fetch], step: int) -> Grant:
        """Pack the array, send a Push or a Fetch, and wait for the Grant."""
        with self._recorder.time("comm"):
            self._flat.pack(self._variables)
        with self._recorder.time("sync"):
            self._channel.send(kind(step, self._channel.rank, *self._unsent(), self.note()), SERVER)
            return self._channel.recv(Grant, step, SERVER)

    def exchanging(self) -> ExitStack:
        """Return the context for the transfer of the array."""
        stack = ExitStack()
        stack.enter_context(self._recorder.time("comm"))
        stack.enter_context(self._channel.waiting())
        return stack

    def _unsent(self) -> tuple[bytes, list[Lap]]:
        """Return the records and the timings since the last message."""
        unsent = pack_records(self._records), list(self._laps)
        self._records.clear()
        self._laps.clear()
        return unsent

    def gather(self, lap: Lap) -> list[Lap]:
        self._laps.append(lap)
        return []

    def total(self, values: np.ndarray, stop: bool) -> tuple[np.ndarray, bool]:
        self._stop = self._stop or bool(stop)
        return np.array(values, dtype=np.float64), self._stop

    def close(self) -> None:
        if self._channel.recv(LeaveAck, self._end, SERVER).alone:
            self._channel.leave()
        self._flat.close()
