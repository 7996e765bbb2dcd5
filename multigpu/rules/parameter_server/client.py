"""A client of a parameter server: trains independently, and exchanges with the server when its rule requires it.

Source: Zhang et al. 2015, algorithm 1; Paine et al. 2013, section 2.3.
"""

from abc import abstractmethod
from contextlib import ExitStack

import numpy as np

from alexnet.training.base import StepResult, Synchronizer
from alexnet.training.loop import train
from multigpu.rules.parameter_server.protocol import SERVER, Grant, Join, Joined, Leave, LeaveAck


class Client(Synchronizer):
    """The Synchronizer of a worker with a parameter server. A rule implements contact().

    variables  the exchanged shared variables
    flat       their flat_buffer.FlatBuffer, on the host
    channel       multigpu.rules.channel.Channel
    info      the WorkerInfo to join with, if the rule is elastic; None: the workers have already verified consistency
    """

    info = None

    def __init__(self, network, variables, flat, channel, recorder):
        self._network, self._variables, self._flat = network, variables, flat
        self._channel, self._recorder = channel, recorder
        self._records, self._laps, self._stop, self._end = [], [], False, 0
        recorder.keep = self._records.append
        flat.pack(variables)
        flat.unpack(variables)                   # on the host, the variables now use the buffer's memory

    def run(self, run, position):
        """Train without validation, which the server does, then leave."""
        if self.info:
            position = self._join(position)
        position = train(run._replace(config=run.config.model_copy(update={"validation": False})), position)
        self.leave(position.iteration)
        return position

    def _join(self, position):
        """Join the server, independent of other clients; returns the Position to start at."""
        step = position.iteration
        self._channel.send(Join(step, self._channel.rank, self.info), SERVER)
        joined = self._channel.recv(Joined, step, SERVER)
        self._stop = joined.stop
        if joined.moved and not joined.stop:
            self.catch_up(joined.position.iteration)
        return joined.position

    def catch_up(self, step):
        """Fetch the current center variable, to start after this step."""
        raise NotImplementedError

    def leave(self, step):
        """Notify the server that this step was the last."""
        self._end = step
        self._channel.send(Leave(step, self._channel.rank, *self._told(), self._stop, self.note()), SERVER)

    def note(self):
        """Return the data of this client for the rule's CenterPolicy."""
        return None

    def step(self, *inputs, rate):
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        self._stop = self._stop or bool(stop)
        if not self._stop:
            stop = self.contact(step)
        return StepResult(float(cost), float(error), bool(stop))

    @abstractmethod
    def contact(self, step):
        """Exchange with the server if it is due after this step; returns whether all workers stop."""

    def ask(self, kind, step):
        """Pack the array, send a Push or a Fetch, and wait for the Grant; returns the Grant."""
        with self._recorder.time("comm"):
            self._flat.pack(self._variables)
        with self._recorder.time("sync"):
            self._channel.send(kind(step, self._channel.rank, *self._told(), self.note()), SERVER)
            return self._channel.recv(Grant, step, SERVER)

    def exchanging(self):
        """Return the context for the transfer of the array."""
        stack = ExitStack()
        stack.enter_context(self._recorder.time("comm"))
        stack.enter_context(self._channel.waiting())
        return stack

    def _told(self):
        """Return the records and the timings since the last message."""
        told = list(self._records), list(self._laps)
        self._records.clear()
        self._laps.clear()
        return told

    def gather(self, lap):
        self._laps.append(lap)
        return []

    def total(self, values, stop):
        self._stop = self._stop or bool(stop)
        return np.array(values, dtype=np.float64), self._stop

    def close(self):
        if self._channel.recv(LeaveAck, self._end, SERVER).alone:
            self._channel.leave()
        self._flat.close()
