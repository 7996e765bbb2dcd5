"""The other workers of a run: what is said to them, and what is heard.

    Hello(step, device, pid, settings, weights) who one is; all must have the same settings, weights and steps done
    On(step, device)                            where one's flat buffer will lie
    Reach(step, sentence)                       whether all partners' memory can be had, or why not
    Export(step, handle)                        where one's flat buffer lies
    Ready(step, cost, error, stop)              my arrays of this step lie in my buffer: they may be read
    Level(step)                                 so do the arrays that are exchanged because a stop follows
    Done(step)                                  I have read yours and written mine: you may change them
    Lapped(step, lap)                           where my time went
    Totals(step, values, stop)                  what I add to a sum over all workers
    Closed(step)                                I have let go of your buffer: you may free it

A message to all followed by one from each is a barrier.  Each says the step it belongs to, so that two workers that
have lost each other say so, instead of averaging what does not belong together.  A dead partner is an EOF.

Source: Ding et al. 2014, section 4.3 (context syncing and additional message communications).
"""

import os
from contextlib import nullcontext
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np

from alexnet.config import ConfigError
from multigpu.process import Watch

# settings that are a worker's own
OWN = {"rank", "device", "devices", "threads", "tiles", "run_name", "resume_train", "print_freq"}


class Hello(NamedTuple):
    """The first message; step is the number of steps done, weights {name: checksum}."""

    step: int
    device: str
    pid: int
    settings: dict
    weights: dict


class On(NamedTuple):
    """The name of the device that the buffers are to lie on."""

    step: int
    device: str


class Reach(NamedTuple):
    """Whether the partners' memory can be reached: None, or a sentence why not."""

    step: int
    sentence: str | None


class Export(NamedTuple):
    """The handle of the flat buffer."""

    step: int
    handle: Any


class Ready(NamedTuple):
    """The arrays of this step lie in this worker's buffer, none of them still on its way."""

    step: int
    cost: float
    error: float
    stop: bool


class Level(NamedTuple):
    """The arrays that this step would have left apart lie in this worker's buffer, because all stop after it."""

    step: int


class Done(NamedTuple):
    """What this worker reads and writes in its partners' buffers has ended."""

    step: int


class Lapped(NamedTuple):
    """An alexnet.stopwatch.Lap, which ended with this step."""

    step: int
    lap: Any


class Totals(NamedTuple):
    """Values to be summed over the workers; step counts these sums."""

    step: int
    values: tuple[float, ...]
    stop: bool


class Closed(NamedTuple):
    """The partners' buffers are closed here."""

    step: int


class PartnerDied(RuntimeError):
    """Another worker is gone; the message says which."""


class OutOfStep(RuntimeError):
    """Another worker is not where this one is; the message says where both are."""


def parted(other, message, own, awaited):
    """The OutOfStep of `own`, who has got a message of `other` and waits for what is `awaited`, all three in words."""
    return OutOfStep(
        f"{other} says {type(message).__name__} of step {message.step}, {own} waits for {awaited}: "
        "their runs have parted; start all workers anew from one checkpoint"
    )


class Partners:
    """The line to every other worker.

    rank   of this worker
    pipes  {rank: Connection} to each of the others, which holds the only other end
    """

    over_mpi, on_one_host = False, True

    def __init__(self, rank, pipes):
        self.rank, self.size = rank, len(pipes) + 1
        self._pipes = pipes
        self._names = {other: f"worker {other}" for other in pipes}

    def tell(self, message):
        """Send a message to every partner; raises PartnerDied."""
        for other, pipe in self._pipes.items():
            try:
                pipe.send(message)
            except ConnectionError as error:
                raise self._died(other) from error

    def hear(self, kind, step):
        """{rank: message}, one from each partner.

        Raises PartnerDied as soon as one is gone, also while another lets wait; OutOfStep for a message of another
        kind or step.
        """
        heard, waiting = {}, {pipe: other for other, pipe in self._pipes.items()}
        while waiting:
            for pipe in connection.wait(waiting):
                other = waiting.pop(pipe)
                heard[other] = self._receive(other, pipe, kind, step)
        return heard

    def meet(self, message):
        """Tell a message to all and hear all of its kind and step, one's own among them: a list, by rank."""
        self.tell(message)
        heard = self.hear(type(message), message.step) | {self.rank: message}
        return [heard[rank] for rank in range(self.size)]

    def watch(self, on_death):
        """A context, with close(), in which on_death(rank) is called, from a thread, as soon as a partner is gone."""
        return Watch(self._pipes, on_death)

    def waiting(self):
        """A context in which this worker waits for others, see multigpu.mpi; here a dead one is an EOF."""
        return nullcontext()

    def progress(self):
        """See multigpu.mpi."""

    def name(self, other, pid):
        """Say a partner's process, too, where a sentence names it."""
        self._names[other] = f"worker {other} (pid {pid})"

    def _receive(self, other, pipe, kind, step):
        try:
            message = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died(other) from error
        if isinstance(message, kind) and message.step == step:
            return message
        raise parted(self._names[other], message, f"worker {self.rank}", f"{kind.__name__} of step {step}")

    def _died(self, other):
        return PartnerDied(f"{self._names[other]} has died; worker {self.rank} cannot go on without it")


def greet(config, network, device, partners, step):
    """Say Hello, and hear it from all; every worker calls it.  Raises ConfigError, OutOfStep: check_alike."""
    hellos = partners.meet(hello_of(config, network, device, step))
    for rank, hello in enumerate(hellos):
        partners.name(rank, hello.pid)
        check_alike(rank, hello, hellos[0])


def hello_of(config, network, device, step):
    """The Hello of this worker after so many steps."""
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in OWN}
    alike = [*network.frozen, *network.parameters_and_velocities]
    weights = {v.name: checksum(v.get_value(borrow=True)) for v in alike}
    return Hello(step, device.name, os.getpid(), settings, weights)


def check_alike(rank, hello, first):
    """Raise ConfigError where the settings or weights of a worker's Hello are not worker 0's."""
    for name, value in hello.settings.items():
        if value != first.settings[name]:
            raise ConfigError(
                f"workers 0 and {rank} differ in {name}: {first.settings[name]} and {value}; give both the same"
            )
    for name, value in hello.weights.items():
        if value != first.weights.get(name):
            raise ConfigError(
                f"workers 0 and {rank} begin with different {name}; start both anew, or from one checkpoint"
            )


def total(partners, step, values, stop):
    """(float64 array of the values, each summed over all workers, whether any of them has to stop); all call it.

    step  counts these sums
    """
    heard = partners.meet(Totals(step, tuple(map(float, values)), bool(stop)))
    return np.sum([totals.values for totals in heard], axis=0), any(totals.stop for totals in heard)


def checksum(array):
    """The sum of a float32 array's bits as words of 32, modulo 2**32."""
    return int(np.asarray(array).view(np.uint32).sum(dtype=np.uint32))
