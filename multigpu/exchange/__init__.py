"""Exchange: after a step all workers hold the same weights and velocities, to the bit.

What the training loop sees of it:

    with exchange:                               on an error nobody is waited for; else as close()
        cost, error = exchange.step(*images, labels, rate=rate)
                                                 the computation: with the update, or up to the gradients
        cost, error, stop = exchange.after_step(step, cost, error, rate, stop, last)
                                                 called by every worker after each step
        sums, stop = exchange.total(values, stop)
                                                 called by every worker, as after its part of the validation
        exchange.close()                         tells the others, then lets go of their memory, then of its own

Alone (alone.py) is a single worker's; connect of a module in EXCHANGES makes that of several:

    connect(config, network, device, partners, warn, step=0) -> Exchange

config    what all workers must have alike is checked here; exchange_what and average_every say what is exchanged, when
network   alexnet.compile.Network, its state settled: initial weights, or those of the checkpoint
device    of multigpu.device, open; it outlives the exchange
partners  multigpu.exchange.partners.Partners
warn      (sentence) -> None, called at rank 0 alone
step      steps done before
Raises ConfigError where the workers do not belong together; PartnerDied, OutOfStep; DeviceError.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

# pkgutil.resolve_name() loads one; a single worker needs none
EXCHANGES = {"peer": "multigpu.exchange.peer:connect"}


class Agreed(NamedTuple):
    """What the workers know together after a step: means of cost and error, and whether any of them has to stop."""

    cost: float
    error: float
    stop: bool


class Exchange(ABC):
    """What the training loop is handed."""

    @abstractmethod
    def step(self, *inputs, rate):
        """Compute a step on this worker's batch; returns its cost and error.

        inputs  (*images, labels)
        rate    float32, the learning rate
        """

    @abstractmethod
    def after_step(self, step, cost, error, rate, stop, last):
        """Make all workers alike again; returns Agreed.

        step   counts from 1 and goes on in a run that is resumed
        rate   the learning rate of the update
        stop   whether this worker has been asked to stop
        last   whether all must be alike after this step whatever average_every says: an epoch's end, a checkpoint
        With average_every a step in between is not waited for; then cost and error are this worker's, stop is False.
        Raises PartnerDied, OutOfStep.
        """

    @abstractmethod
    def total(self, values, stop):
        """(float64 array of the values, each summed over all workers, whether any of them has to stop)."""

    @abstractmethod
    def close(self):
        """Let go of everything, in the order that CUDA needs: of the others' memory before they free it."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
