"""One simulated training after the other, each into a row of numbers: what benchmarks.asgd's figures are drawn from.

Times are seconds on the virtual clock; errors are shares of images.  A row has the trial's settings and

    curve        the training error over time, a mean over 400 minibatches of all clients in the order of their time
    end, early   its mean over the last tenth and the first quarter of the time
    slope        of a straight line through what follows that quarter, in points of % per 1,000 seconds
    jagged       how far the curve leaves a smooth one, a cubic, beyond what chance alone makes of 400 minibatches: the
                 root of the mean square
    teeth        by how much a client's error falls at an exchange
    tests        test error of what stands for all, by centre crop and by ten crops
    staleness    {staleness: pushes}, and said: the server's report of its load
"""

import time
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from alexnet.config import load_config
from benchmarks import asgd_peers
from benchmarks.asgd_task import BATCH, Batches, errors_on_test
from multigpu.virtual import Costs, Simulation

WINDOW, POINTS = 400, 300                        # minibatches of the moving average; points of a curve
PATIENCE, BETTER, FALLS = 3, 0.002, 2            # epochs without a test error so much better, until the rate falls
ALONE = Costs(1.0)


class Trial(NamedTuple):
    """A training: by which rule, of how many clients, for how long.

    costs      seconds of a step, a copy, a transfer, an apply        seconds  the time that all have
    settings   more of the Config, (name, value) pairs                warm     seconds of one client alone before
    spread     the slowest client's steps take so many times as long as the fastest's
    epochs     0: the test error is taken at the end; else after each epoch of the clients, at most so many, and the
               rate falls to a tenth where it stays, as Krizhevsky et al. 2012, section 5, have it
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
    """The row of a trial."""
    began = time.perf_counter()
    task.network.set_state(warm_state(task, trial.warm, trial.rate) if trial.warm else task.begin)
    found = served(trial, task) if trial.rule in ("asgd", "easgd") else asgd_peers.run(trial, task)
    times, errors, more = found
    settings = trial._asdict() | {"costs": trial.costs._asdict(), "settings": dict(trial.settings)}
    seconds = trial.seconds if np.isfinite(trial.seconds) else float(times[-1])
    return settings | {"seconds": seconds, "minibatches": len(errors)} | summary(times, errors) | more | {
        "took": time.perf_counter() - began}  # fmt: skip


@cache
def warm_state(task, seconds, rate):
    """The state of the network after one client has trained alone for so long, as a checkpoint has it: velocities 0."""
    task.network.set_state(task.begin)
    simulation, take_step = opened(Trial("warm", rate=rate, seconds=seconds, seed=1), task, Rate(rate))
    for _ in simulation.run(take_step, seconds):
        pass
    with simulation.centre():
        state = {name: np.array(array) for name, array in task.network.get_state().items()}
    weights = {variable.name for variable in task.network.parameters}
    return {name: array if name in weights else np.zeros_like(array) for name, array in state.items()}


def opened(trial, task, rate):
    """The Simulation of a trial, and its take_step."""
    given = {"rule": trial.rule, "random_seed": trial.seed} | dict(trial.settings)
    given |= {"n_sync": trial.n_sync} if trial.rule == "asgd" else {"tau": trial.n_sync}
    config = load_config([f"{name}={value}" for name, value in given.items()])
    paces = np.geomspace(1, trial.spread, trial.clients)
    simulation = Simulation(config, task.network, trial.clients, trial.costs, paces, trial.jitter)
    batches = {client: Batches(task, trial.seed, client) for client in range(1, trial.clients + 1)}

    def take_step(exchange, client, step):
        return float(exchange.step(*batches[client].next(), rate=rate.value)[1])

    return simulation, take_step


def served(trial, task):
    """(times, errors, what else a row has) of a rule with a server."""
    rate, epochs, stretches, steps = Rate(trial.rate), [], [], 0
    simulation, take_step = opened(trial, task, rate)
    for stretch in simulation.run(take_step, trial.seconds, trial.epochs * len(task.batches) or None):
        stretches.append(stretch)
        steps += len(stretch.told)
        if trial.epochs and steps >= (len(epochs) + 1) * len(task.batches) * trial.clients:
            epochs.append(tested(simulation, task, stretch.served, epoch=steps / len(task.batches) / trial.clients))
            if rate.fallen(epochs[-1]["test"]) > FALLS or len(epochs) == trial.epochs:
                break
    tests = epochs or [tested(simulation, task, trial.seconds)]
    pushes = simulation.log.pushes
    more = {"tests": tests, "teeth": teeth(stretches), "said": simulation.report(), "pushes": len(pushes),
            "staleness": dict(sorted(Counter(push["staleness"] for push in pushes).items())),
            "waiting": float(np.mean([push["waiting"] for push in pushes])) / 1000 if pushes else 0.0}  # fmt: skip
    times = np.concatenate([stretch.times() for stretch in stretches])
    errors = np.concatenate([stretch.told for stretch in stretches])
    order = np.argsort(times, kind="stable")
    times, errors = times[order], errors[order]
    if epochs:
        train_errors(epochs, times, errors)
    return times, errors, more


def tested(simulation, task, seconds, **more):
    with simulation.centre():
        centre, ten = errors_on_test(task)
    return {"seconds": seconds, "test": centre, "ten_crops": ten, **more}


def train_errors(epochs, times, errors):
    """Write into each epoch the training error since the one before."""
    ends = np.searchsorted(times, [0.0, *(epoch["seconds"] for epoch in epochs)])
    for epoch, (begin, end) in zip(epochs, pairwise(ends), strict=True):
        epoch["train"] = float(errors[begin:end].mean())


class Rate:
    """The learning rate, which falls to a tenth where the test error has not become better for some epochs."""

    def __init__(self, value):
        self.value, self._best, self._since, self._falls = np.float32(value), 1.0, 0, 0

    def fallen(self, error):
        """Look at an epoch's test error; returns how often the rate should have fallen by now."""
        better = error < self._best - BETTER
        self._best, self._since = (error, 0) if better else (self._best, self._since + 1)
        if self._since == PATIENCE:
            self._since, self._falls = 0, self._falls + 1
            self.value = np.float32(self.value / 10)
        return self._falls


# ---- from minibatches to numbers


def summary(times, errors):
    """curve, end, early, slope and jagged of minibatches in the order of their time."""
    (at, means), seconds = smoothed(times, errors), times[-1]
    early, late, end = times <= seconds / 4, times > seconds / 4, times >= 0.9 * seconds
    slope = np.polyfit(times[late], errors[late], 1)[0] if np.ptp(times[late]) > 0 else 0.0
    return {"curve": {"seconds": at, "error": means}, "end": float(errors[end].mean()),
            "early": float(errors[early].mean()), "slope": float(1e5 * slope), "jagged": jagged(at, means)}  # fmt: skip


def jagged(at, means, window=WINDOW):
    """The root of the mean square by which a curve of averages over `window` minibatches leaves a cubic, less chance's.

    The first quarter, where a cubic does not follow the curve, does not count.
    """
    at, means = np.array(at), np.array(means)
    at, means = (values[at > at[0] + (at[-1] - at[0]) / 4] for values in (at, means))
    if len(at) < 8:
        return 0.0
    smooth = np.polynomial.Polynomial.fit(at, means, 3)(at)
    chance = np.mean(means * (1 - means)) / (BATCH * window)
    return float(max(np.mean((means - smooth) ** 2) - chance, 0.0) ** 0.5)


def smoothed(times, errors, window=WINDOW, points=POINTS):
    """(seconds, means): a moving average over so many minibatches, at so many moments."""
    window = min(window, len(errors))
    sums = np.cumsum(np.concatenate([[0.0], errors]))
    means, at = (sums[window:] - sums[:-window]) / window, times[window - 1 :]
    kept = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], points)))
    return at[kept].round(2).tolist(), means[kept].round(5).tolist()


def teeth(stretches):
    """By how much the error falls at an exchange: that of a client's last fifth of the steps before it less that of as
    many after it; the mean over all pairs of whole stretches."""
    longest = max(len(stretch.told) for stretch in stretches)
    fifth, before, falls = max(1, longest // 5), {}, []
    for stretch in stretches:
        if len(stretch.told) == longest:
            if stretch.client in before:
                falls.append(before[stretch.client] - np.mean(stretch.told[:fifth]))
            before[stretch.client] = np.mean(stretch.told[-fifth:])
    return float(np.mean(falls)) if falls else 0.0
