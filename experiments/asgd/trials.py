"""Simulates trainings and summarises each as one row, from which the figures are drawn.

Times are seconds on the virtual clock; errors are fractions of images. A row contains the settings of the trial and

    curve        training error over time: moving mean over 400 minibatches of all clients, in chronological order
    end, early   mean training error in the last tenth and in the first quarter of the time
    slope        slope of a straight line through the errors after that quarter, in percentage points per 1,000 seconds
    jagged       root mean square deviation of the curve from a cubic, beyond the sampling noise of 400 minibatches
    teeth        decrease of a client's error at an exchange
    tests        test errors of the center variable or consensus, for the centre crop and for ten crops
    staleness    {staleness: number of pushes}
    report       the server's report of its load
"""

import time
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from alexnet.config import load_config
from experiments.asgd import Costs, Simulation, peers
from experiments.asgd.task import BATCH, Batches, errors_on_test

WINDOW, POINTS = 400, 300                        # minibatches of the moving average; points of a curve
PATIENCE, BETTER, FALLS = 3, 0.002, 2            # epochs; minimum improvement of the test error; rate reductions
ALONE = Costs(1.0)


class Trial(NamedTuple):
    """A training: its rule, number of clients, duration and further settings.

    rate:      learning rate
    seconds:   duration on the virtual clock
    costs:     seconds of a step, a copy, a transfer and an apply
    settings:  further settings of the Config, (name, value) pairs
    warm:      seconds of single-client training before the trial; 0 is a cold start
    spread:    duration of the slowest client's steps relative to the fastest client's
    jitter:    random relative variation of a step's duration
    epochs:    maximum number of epochs of each client. The test error is measured after each epoch, and the rate falls
               to a tenth when it stops improving (Krizhevsky et al. 2012, section 5). With 0 the test error is
               measured once, at the end, and the rate is constant
    """

    experiment: str
    clients: int = 1
    n_sync: int = 600
    rule: str = "asgd"
    name: str = ""
    rate: float = 0.005
    seconds: float = np.inf
    costs: Costs = ALONE
    settings: tuple = ()
    warm: float = 0.0
    spread: float = 1.0
    jitter: float = 0.02
    epochs: int = 0
    seed: int = 0


def run(trial, task):
    """Run a trial and return its row."""
    began = time.perf_counter()
    task.network.set_state(warm_state(task, trial.warm, trial.rate) if trial.warm else task.begin)
    found = served(trial, task) if trial.rule in ("asgd", "easgd") else peers.run(trial, task)
    times, errors, more = found
    settings = trial._asdict() | {"costs": trial.costs._asdict(), "settings": dict(trial.settings)}
    seconds = trial.seconds if np.isfinite(trial.seconds) else float(times[-1])
    return settings | {"seconds": seconds, "minibatches": len(errors)} | summary(times, errors) | more | {
        "took": time.perf_counter() - began}


@cache
def warm_state(task, seconds, rate):
    """Return the network's state after `seconds` of single-client training, with zero velocities as in a checkpoint."""
    task.network.set_state(task.begin)
    simulation, take_step = opened(Trial("warm", rate=rate, seconds=seconds, seed=1), task, Rate(rate))
    for _ in simulation.run(take_step, seconds):
        pass
    with simulation.center():
        state = {name: np.array(array) for name, array in task.network.get_state().items()}
    weights = {variable.name for variable in task.network.parameters}
    return {name: array if name in weights else np.zeros_like(array) for name, array in state.items()}


def opened(trial, task, rate):
    """Return the Simulation of a trial and its take_step function."""
    given = {"rule": trial.rule, "random_seed": trial.seed} | dict(trial.settings)
    given |= {"n_sync": trial.n_sync} if trial.rule == "asgd" else {"easgd_tau": trial.n_sync}
    config = load_config([f"{name}={value}" for name, value in given.items()])
    paces = np.geomspace(1, trial.spread, trial.clients)
    simulation = Simulation(config, task.network, trial.clients, trial.costs, paces, trial.jitter)
    batches = {client: Batches(task, trial.seed, client) for client in range(1, trial.clients + 1)}

    def take_step(exchange, client, step):
        return float(exchange.step(*batches[client].next(), rate=rate.value)[1])

    return simulation, take_step


def served(trial, task):
    """Simulate a rule with a server. Return (times, errors, further fields of the row)."""
    rate, epochs, intervals, steps = Rate(trial.rate), [], [], 0
    simulation, take_step = opened(trial, task, rate)
    for interval in simulation.run(take_step, trial.seconds, trial.epochs * len(task.batches) or None):
        intervals.append(interval)
        steps += len(interval.results)
        if trial.epochs and steps >= (len(epochs) + 1) * len(task.batches) * trial.clients:
            epochs.append(tested(simulation, task, interval.served, epoch=steps / len(task.batches) / trial.clients))
            if rate.fallen(epochs[-1]["test"]) > FALLS or len(epochs) == trial.epochs:
                break
    tests = epochs or [tested(simulation, task, trial.seconds)]
    pushes = simulation.log.pushes
    more = {"tests": tests, "teeth": teeth(intervals), "report": simulation.report(), "pushes": len(pushes),
            "staleness": dict(sorted(Counter(push["staleness"] for push in pushes).items())),
            "waiting": float(np.mean([push["waiting"] for push in pushes])) / 1000 if pushes else 0.0}
    times = np.concatenate([interval.times() for interval in intervals])
    errors = np.concatenate([interval.results for interval in intervals])
    order = np.argsort(times, kind="stable")
    times, errors = times[order], errors[order]
    if epochs:
        train_errors(epochs, times, errors)
    return times, errors, more


def tested(simulation, task, seconds, **more):
    with simulation.center():
        center, ten = errors_on_test(task)
    return {"seconds": seconds, "test": center, "ten_crops": ten, **more}


def train_errors(epochs, times, errors):
    """Store in each epoch the mean training error since the previous epoch."""
    ends = np.searchsorted(times, [0.0, *(epoch["seconds"] for epoch in epochs)])
    for epoch, (begin, end) in zip(epochs, pairwise(ends), strict=True):
        epoch["train"] = float(errors[begin:end].mean())


class Rate:
    """A learning rate that falls to a tenth if the test error has not improved for PATIENCE epochs."""

    def __init__(self, value):
        self.value, self._best, self._since, self._falls = np.float32(value), 1.0, 0, 0

    def fallen(self, error):
        """Update the rate with the test error of an epoch. Return the number of reductions so far."""
        better = error < self._best - BETTER
        self._best, self._since = (error, 0) if better else (self._best, self._since + 1)
        if self._since == PATIENCE:
            self._since, self._falls = 0, self._falls + 1
            self.value = np.float32(self.value / 10)
        return self._falls


# ---- summary of the minibatch errors


def summary(times, errors):
    """Return curve, end, early, slope and jagged for minibatches in chronological order."""
    (at, means), seconds = smoothed(times, errors), times[-1]
    early, late, end = times <= seconds / 4, times > seconds / 4, times >= 0.9 * seconds
    slope = np.polyfit(times[late], errors[late], 1)[0] if np.ptp(times[late]) > 0 else 0.0
    return {"curve": {"seconds": at, "error": means}, "end": float(errors[end].mean()),
            "early": float(errors[early].mean()), "slope": float(1e5 * slope), "jagged": jagged(at, means)}


def jagged(at, means, window=WINDOW):
    """Return the root mean square deviation of a curve from a cubic, after subtracting the variance of sampling noise.

    The curve is a moving average over `window` minibatches. Its first quarter, which a cubic does not fit, is excluded.
    """
    at, means = np.array(at), np.array(means)
    at, means = (values[at > at[0] + (at[-1] - at[0]) / 4] for values in (at, means))
    if len(at) < 8:
        return 0.0
    smooth = np.polynomial.Polynomial.fit(at, means, 3)(at)
    chance = np.mean(means * (1 - means)) / (BATCH * window)
    return float(max(np.mean((means - smooth) ** 2) - chance, 0.0) ** 0.5)


def smoothed(times, errors, window=WINDOW, points=POINTS):
    """Return (seconds, means): a moving average over `window` minibatches at up to `points` times."""
    window = min(window, len(errors))
    sums = np.cumsum(np.concatenate([[0.0], errors]))
    means, at = (sums[window:] - sums[:-window]) / window, times[window - 1 :]
    kept = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], points)))
    return at[kept].round(2).tolist(), means[kept].round(5).tolist()


def teeth(intervals):
    """Return the mean decrease of a client's error at an exchange.

    The decrease is the mean error of the last fifth of the steps before the exchange minus that of the first fifth
    after it. Only consecutive intervals of full length are compared.
    """
    longest = max(len(interval.results) for interval in intervals)
    fifth, before, falls = max(1, longest // 5), {}, []
    for interval in intervals:
        if len(interval.results) == longest:
            if interval.client in before:
                falls.append(before[interval.client] - np.mean(interval.results[:fifth]))
            before[interval.client] = np.mean(interval.results[-fifth:])
    return float(np.mean(falls)) if falls else 0.0
