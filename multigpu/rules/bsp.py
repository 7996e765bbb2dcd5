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

Adagrad and Adadelta are not linear. Only gradients make all workers equal to each other, and to one worker that trains
on the N batches together. Momentum is linear: avg at N lr, cdd at lr, and a single worker on the N batches together
at N lr follow the same trajectory up to rounding.
"""

from typing import NamedTuple

import numpy as np

from multigpu.communicator import Ready, SyncRemaining, TimingReport, total, verify_consistency
from multigpu.exchange import Strategy, strategy_of
from multigpu.rules import StepResult, Synchronizer, exchanged


def connect(config, network, device, partners, recorder, step=0):
    """Return the Bsp synchronizer of this worker; see multigpu.rules for the arguments. Collective."""
    verify_consistency(config, network, device, partners, step)
    what = exchanged(config, partners)
    weights, velocities = weights_and_velocities(network)
    variables = {"gradients": [network.gradients] if what == "gradients" else [],
                 "weights": [weights, velocities], "weights_and_momentum": [weights + velocities]}[what]
    open_strategy = strategy_of(config, partners)
    lots = [
        ParameterGroup(each, open_strategy(config, device, partners, shapes_of(each), recorder.warn, step))
        for each in variables if each
    ]
    rates = partners.size if config.sync == "cdd" else 1
    return Bsp(network, lots, what, partners, recorder, config.average_every, rates)


def weights_and_velocities(network):
    """Return the shared variables that training changes, as two lists."""
    both = network.parameters_and_velocities
    return both[: len(network.learning)], both[len(network.learning) :]


def shapes_of(variables):
    return [np.shape(variable.get_value(borrow=True)) for variable in variables]


class ParameterGroup(NamedTuple):
    """Shared variables that are averaged together, and the Strategy whose flat buffer holds them."""

    variables: list
    strategy: Strategy

    def pack(self):
        self.strategy.flat.pack(self.variables)
        self.strategy.device.synchronise()

    def average(self, step):
        self.strategy.average(step)
        self.strategy.flat.unpack(self.variables)


class Bsp(Synchronizer):
    """The Synchronizer of rule bsp; created by connect().

    lots   list of ParameterGroup: the first is averaged in each exchange, the others if all state must be equal
    what   weights_and_momentum, weights or gradients
    every  number of steps between two exchanges
    rates  factor of the learning rate: N for cdd
    """

    def __init__(self, network, lots, what, partners, recorder, every=1, rates=1):
        self._network, self._lots, self._apart = network, lots, what == "gradients"
        self._partners, self._recorder = partners, recorder
        self._every, self._rates, self._totals = every, rates, 0

    def step(self, *inputs, rate):
        if self._apart:
            return self._network.compute(*inputs)
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        cost, error = float(cost), float(error)
        if step % self._every and not last:
            return StepResult(cost, error, False)
        lots = self._lots if last else self._lots[:1]
        with self._recorder.time("comm"):
            for lot in lots:
                lot.pack()
        with self._recorder.time("sync"):
            all_ready = self._partners.allgather(Ready(step, cost, error, bool(stop)))
        costs, errors, stops = zip(*((ready.cost, ready.error, ready.stop) for ready in all_ready), strict=True)
        stop = any(stops)
        with self._recorder.time("comm"), self._partners.waiting():
            for lot in lots:
                lot.average(step)
        if self._apart:
            with self._recorder.time("calc"):
                self._network.apply(np.float32(self._rates * rate))
        if stop and not last:
            self._level(step)
        return StepResult(sum(costs) / len(costs), sum(errors) / len(errors), stop)

    def _level(self, step):
        """Average the remaining groups, because an unscheduled checkpoint follows."""
        with self._recorder.time("comm"), self._partners.waiting():
            for lot in self._lots[1:]:
                lot.pack()
                self._partners.allgather(SyncRemaining(step))
                lot.average(step)

    def gather(self, lap):
        laps = [each.lap for each in self._partners.allgather(TimingReport(lap.iteration, lap))]
        return laps if self._partners.rank == 0 else []

    def total(self, values, stop):
        self._totals += 1
        return total(self._partners, self._totals, values, stop)

    def close(self):
        with self._partners.waiting():
            for lot in self._lots:
                lot.strategy.close()
