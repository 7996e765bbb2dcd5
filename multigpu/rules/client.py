"""A client of a server: it trains as if it were alone, and comes to the server when its rule says so.

Source: Zhang et al. 2015, algorithm 1; Paine et al. 2013, section 2.3.
"""

from abc import abstractmethod
from contextlib import ExitStack

import numpy as np

from alexnet.training import train
from multigpu.rules import Agreed, Exchange
from multigpu.rules.turns import SERVER, Farewell, Join, Joined, Leave, Turn


class Client(Exchange):
    """What the training loop of a worker is handed; a rule says what contact() does.

    variables  the shared variables that are exchanged      flat  multigpu.exchange.flat.Flat of theirs, on the host
    post       multigpu.rules.post.Post
    hello      what to join with, where the rule lets clients come and go; None: all have greeted each other
    """

    hello = None

    def __init__(self, network, variables, flat, post, recorder):
        self._network, self._variables, self._flat = network, variables, flat
        self._post, self._recorder = post, recorder
        self._records, self._laps, self._stop, self._end = [], [], False, 0
        recorder.keep = self._records.append
        flat.pack(variables)
        flat.unpack(variables)                   # on the host they lie there from now on

    def run(self, run, position):
        """Train without validation, which is the server's, and leave."""
        if self.hello:
            position = self._join(position)
        position = train(run._replace(config=run.config.model_copy(update={"validation": False})), position)
        self.leave(position.iteration)
        return position

    def _join(self, position):
        """Come to the server, whoever else is there by now; returns the Position to begin at."""
        step = position.iteration
        self._post.send(Join(step, self._post.rank, self.hello), SERVER)
        joined = self._post.hear(Joined, step, SERVER)
        self._stop = joined.stop
        if joined.moved and not joined.stop:
            self.catch_up(joined.position.iteration)
        return joined.position

    def catch_up(self, step):
        """Begin with the centre as it is by now, and after this step."""
        raise NotImplementedError

    def leave(self, step):
        """Say that this step was the last."""
        self._end = step
        self._post.send(Leave(step, self._post.rank, *self._told(), self._stop, self.note()), SERVER)

    def note(self):
        """What the rule's Keeper is to know of this client."""
        return None

    def step(self, *inputs, rate):
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        self._stop = self._stop or bool(stop)
        if not self._stop:
            stop = self.contact(step)
        return Agreed(float(cost), float(error), bool(stop))

    @abstractmethod
    def contact(self, step):
        """Exchange with the server if it is due after this step; returns whether all stop."""

    def ask(self, kind, step):
        """Come to the server with a Push or a Fetch, the array packed; returns the Turn, once it comes."""
        with self._recorder.time("comm"):
            self._flat.pack(self._variables)
        with self._recorder.time("sync"):
            self._post.send(kind(step, self._post.rank, *self._told(), self.note()), SERVER)
            return self._post.hear(Turn, step, SERVER)

    def exchanging(self):
        """The context in which the array goes and comes."""
        stack = ExitStack()
        stack.enter_context(self._recorder.time("comm"))
        stack.enter_context(self._post.waiting())
        return stack

    def _told(self):
        """What has been recorded since the last time, and the laps."""
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
        if self._post.hear(Farewell, self._end, SERVER).alone:
            self._post.leave()
        self._flat.close()
