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


def connect(config, network, device, comm, recorder, step=0):
    """Return the Bsp synchronizer of this worker; see multigpu.rules for the arguments. Collective."""
    verify_consistency(config, network, device, comm, step)
    what = exchanged(config, comm)
    weights, velocities = weights_and_velocities(network)
    variables = {"gradients": [network.gradients] if what == "gradients" else [],
                 "weights": [weights, velocities], "weights_and_momentum": [weights + velocities]}[what]
    open_strategy = strategy_of(config, comm)
    groups = [
        ParameterGroup(each, open_strategy(config, device, comm, shapes_of(each), recorder.warn, step))
        for each in variables if each
    ]
    rates = comm.size if config.sync == "cdd" else 1
    return Bsp(network, groups, what, comm, recorder, config.average_every, rates)


def weights_and_velocities(network):
    """Return the shared variables that training changes, as two lists."""
    both = network.parameters_and_velocities
    return both[: len(network.trainable_parameters)], both[len(network.trainable_parameters) :]


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

    groups   list of ParameterGroup: the first is averaged in each exchange, the others if all state must be equal
    what   weights_and_momentum, weights or gradients
    every  number of steps between two exchanges
    rates  factor of the learning rate: N for cdd
    """

    def __init__(self, network, groups, what, comm, recorder, every=1, rates=1):
        self._network, self._groups, self._apart = network, groups, what == "gradients"
        self._comm, self._recorder = comm, recorder
        self._every, self._rates, self._totals = every, rates, 0

    def step(self, *inputs, rate):
        if self._apart:
            return self._network.compute(*inputs)
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        cost, error = float(cost), float(error)
        if step % self._every and not last:
            return StepResult(cost, error, False)
        groups = self._groups if last else self._groups[:1]
        with self._recorder.time("comm"):
            for group in groups:
                group.pack()
        with self._recorder.time("sync"):
            all_ready = self._comm.allgather(Ready(step, cost, error, bool(stop)))
        costs, errors, stops = zip(*((ready.cost, ready.error, ready.stop) for ready in all_ready), strict=True)
        stop = any(stops)
        with self._recorder.time("comm"), self._comm.waiting():
            for group in groups:
                group.average(step)
        if self._apart:
            with self._recorder.time("calc"):
                self._network.apply(np.float32(self._rates * rate))
        if stop and not last:
            self._level(step)
        return StepResult(sum(costs) / len(costs), sum(errors) / len(errors), stop)

    def _level(self, step):
        """Average the remaining groups, because an unscheduled checkpoint follows."""
        with self._recorder.time("comm"), self._comm.waiting():
            for group in self._groups[1:]:
                group.pack()
                self._comm.allgather(SyncRemaining(step))
                group.average(step)

    def gather(self, lap):
        laps = [each.lap for each in self._comm.allgather(TimingReport(lap.iteration, lap))]
        return laps if self._comm.rank == 0 else []

    def total(self, values, stop):
        self._totals += 1
        return total(self._comm, self._totals, values, stop)

    def close(self):
        with self._comm.waiting():
            for group in self._groups:
                group.strategy.close()
