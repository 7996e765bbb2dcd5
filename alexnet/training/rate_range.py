"""The learning rate range test: a sweep of rising rates finds where training diverges, and trials compare lower rates.

    sweep    one run whose rate rises exponentially; its edge is the last rate at which the cost is near its minimum
    trials   short runs at constant rates, from the same weights and on the same batches; the first at a tenth of the
             edge, then lower ones by factors of 2.5 until one lowers the cost, then neighbours of the best ones, until
             a higher and a lower rate are worse. If none lowers the cost, as on the plateau on which AlexNet starts,
             longer trials begin with the highest rate without a higher cost

Dead ReLUs also keep the cost where it is, at rates far above those that train. So a cost that has not fallen is no
reason for a higher rate.

A sweep cannot measure how fast a constant rate trains, because it spends few steps at each rate and because momentum
delays the divergence. The trials do, at the cost of more steps.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3, for the sweep.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np

from alexnet.config import Config
from alexnet.data.colour import colours_of
from alexnet.data.dataset import BatchReader, Split
from alexnet.data.prefetch import in_order
from alexnet.training.loop import Position, TrainingBatch, epoch_batches
from alexnet.training.network import Network

DECAY = 0.9                                      # of the smoothed cost, per step
DIVERGED = 1.5                                   # smoothed cost, divided by its minimum, ...
MARGIN = 0.5                                     # ... plus this many nats, because costs near 0 fluctuate
NEAR = 1.05                                      # smoothed cost at the edge, divided by the minimum, ...
NEAR_MARGIN = 0.02                               # ... plus this many nats
START = 10                                       # edge divided by the rate of the first trial
FACTOR = 2.5                                     # between the rates of neighbouring trials
MOST_TRIALS = 6
MARGIN_OF_TRIALS = math.sqrt(FACTOR)             # whole trainings need lower rates than short ones: docs/recipes.md
WITHOUT_TRIALS = 20                              # edge divided by the proposal, if there are no trials
FIRST_STEPS = 5                                  # whose mean is the initial cost, because their rates are small
TIED = 1.02                                      # final cost, divided by the lowest, up to which trials are equal
FELL = 0.99                                      # final cost, divided by the initial, from which on it has fallen

Inputs = tuple[np.ndarray, ...]


class CostCurve(NamedTuple):
    """The costs of a run, in nats: float64 arrays of one value per step.

    diverged  whether the run ended early because the cost was well above its minimum or not finite
    """

    rates: np.ndarray
    costs: np.ndarray
    diverged: bool

    @property
    def smoothed(self) -> np.ndarray:
        """The smoothed costs."""
        return smooth(self.costs)

    @property
    def lowest(self) -> float:
        """The minimum of the smoothed costs."""
        return float(np.nanmin(self.smoothed))

    @property
    def initial(self) -> float:
        """The mean cost of the first steps."""
        return float(self.costs[:FIRST_STEPS].mean())

    @property
    def final(self) -> float:
        """The mean cost of the last quarter of the steps; infinity if the run has diverged."""
        return math.inf if self.diverged else float(self.costs[-max(len(self.costs) // 4, 1):].mean())


def smooth(costs: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the exponential moving averages of the costs, divided by 1 - DECAY**n as in Adam, so without bias."""
    means = np.empty(len(costs))
    mean = 0.0
    for n, cost in enumerate(costs):
        mean = DECAY * mean + (1 - DECAY) * cost
        means[n] = mean / (1 - DECAY ** (n + 1))
    return means


def rising_rates(first: float, last: float, steps: int) -> np.ndarray:
    """Return rates that rise by the same factor in each step, float64 (steps,)."""
    return np.geomspace(first, last, steps)


def edge_of(curve: CostCurve) -> float:
    """Return the last rate of a sweep at which the smoothed cost is near its minimum.

    On the plateau on which AlexNet starts, the position of the minimum is noise, but the edge is not.
    """
    near = curve.smoothed <= NEAR * curve.lowest + NEAR_MARGIN
    return float(curve.rates[np.flatnonzero(near)[-1]])


def rounded(rate: float) -> float:
    """Return a rate with two significant digits."""
    return float(f"{rate:.1e}")


def first_rate(sweep: CostCurve) -> float:
    """Return the rate of the first trial."""
    return rounded(edge_of(sweep) / START)


def cost_without_learning(sweep: CostCurve, chance: float) -> float:
    """Return the cost that a trial must undercut: that of the initial weights, or of equal probabilities if it is less.

    Args:
        chance: the result of chance_cost().
    """
    return min(sweep.initial, chance)


def has_learned(trial: CostCurve, before: float) -> bool:
    """Return whether a trial has lowered the cost.

    Args:
        before: the result of cost_without_learning().
    """
    return trial.final < FELL * before


def next_rate(first: float, trials: Sequence[CostCurve], before: float = math.inf) -> float | None:
    """Return the rate of the next trial, or None if there are enough.

    It is lower than all others until a trial has learned, then a neighbour of the best ones, the higher first.

    Args:
        first: the rate of the first trial.
        before: as of has_learned().
    """
    if not trials:
        return first
    if len(trials) == MOST_TRIALS:
        return None
    if not any(has_learned(trial, before) for trial in trials):
        return rounded(min(trial.rates[0] for trial in trials) / FACTOR)
    equal = [trial.rates[0] for trial in equally_good(trials, before)]
    near = rounded(max(equal) * FACTOR), rounded(min(equal) / FACTOR)
    tried = [trial.rates[0] for trial in trials]
    return next((rate for rate in near if not np.isclose(tried, rate, rtol=0.2).any()), None)


def equally_good(trials: Sequence[CostCurve], before: float) -> list[CostCurve]:
    """Return the trials whose final cost is the lowest, up to 2 %; if any trial has learned, of those that have.

    Args:
        before: as of has_learned().
    """
    candidates = [trial for trial in trials if has_learned(trial, before)] or trials
    lowest = min(trial.final for trial in candidates)
    return [trial for trial in candidates if trial.final <= TIED * lowest]


def best_of(trials: Sequence[CostCurve], before: float = math.inf) -> CostCurve:
    """Return the trial with the highest rate of those that are equally good, or with the lowest if all have diverged.

    On the plateau on which AlexNet and GoogLeNet start, lower rates have slightly lower costs, because they add less
    noise, but leave it later.

    Args:
        before: as of has_learned().
    """
    equal = equally_good(trials, before)
    choose = min if math.isinf(equal[0].final) else max
    return choose(equal, key=lambda trial: trial.rates[0])


def propose(sweep: CostCurve, trials: Sequence[CostCurve], before: float = math.inf) -> float:
    """Return the rate of the best trial divided by MARGIN_OF_TRIALS, or without trials a fraction of the edge.

    If several trials are equally good, it is the geometric mean of their rates.

    Args:
        trials: with constant rates.
        before: as of has_learned().
    """
    if not trials:
        return rounded(edge_of(sweep) / WITHOUT_TRIALS)
    rates = [trial.rates[0] for trial in equally_good(trials, before)]
    return rounded(math.exp(np.log(rates).mean()) / MARGIN_OF_TRIALS)


def problem_of_sweep(sweep: CostCurve) -> str:
    """Return why no rate can be derived from a sweep, or an empty string."""
    if not math.isfinite(sweep.costs[0]):
        return (
            f"the cost of the first step is {sweep.costs[0]:g}, before any update: look at the images, the mean image "
            "and the initial weights"
        )
    if sweep.diverged and edge_of(sweep) <= sweep.rates[min(FIRST_STEPS, len(sweep.rates)) - 1]:
        return (
            f"the cost rises from {sweep.costs[0]:.3g} at the lowest rates, {sweep.rates[0]:.2g} and above: lower "
            "--first"
        )
    return ""


def is_plateau(sweep: CostCurve, trials: Sequence[CostCurve], before: float) -> bool:
    """Return whether longer trials may lower the cost: none of these does, but high rates diverge and low ones do not.

    Args:
        before: as of has_learned().
    """
    best = best_of(trials, before)
    return sweep.diverged and math.isfinite(best.final) and not has_learned(best, before)


def problem_of_trials(sweep: CostCurve, trials: Sequence[CostCurve], before: float) -> str:
    """Return why the trials confirm no rate, or an empty string.

    Args:
        before: as of has_learned().
    """
    best = best_of(trials, before)
    if has_learned(best, before):
        return ""
    if math.isinf(best.final):
        return "training diverges at all rates tried: look at the images and the initial weights, or lower --first"
    what = "no rate lowers the cost below " + (
        "that of the initial weights" if before == sweep.initial else "that of equal probabilities"
    ) + f", {before:.4g}"
    if not sweep.diverged:
        return (
            f"{what}, and none up to {sweep.rates[-1]:.2g} lets it diverge: raise --last, or look at frozen_layers and "
            "at units that are dead"
        )
    return (
        f"{what}, in {len(best.costs)} steps: either this network needs more steps to leave its initial plateau (raise "
        f"--steps), or labels and images do not match; the highest rate without a higher cost is {best.rates[0]:g}"
    )


def chance_cost(labels: np.ndarray, auxiliary_weights: Sequence[float]) -> float:
    """Return the training cost of a network that knows only how frequent each class is, in nats.

    Args:
        labels: of the training images.
        auxiliary_weights: of the costs of the auxiliary classifiers.
    """
    counts = np.bincount(labels)
    shares = counts[counts > 0] / len(labels)
    return float(-(shares * np.log(shares)).sum() * (1 + sum(auxiliary_weights)))


class RangeTest:
    """Runs of a network from the same state and on the same first batches of a training.

    Args:
        network: compiled; its state is that at the beginning of each run.
        split: the training images of one worker.
    """

    def __init__(self, config: Config, network: Network, split: Split):
        self.config = config
        self.network = network
        self.split = split
        self.state = {name: array.copy() for name, array in network.get_state().items()}
        self.reader = BatchReader(network.mean, network.model.image_size)
        self.colours = colours_of(split.files) if config.pca_colour else None

    def run(self, rates: np.ndarray, advanced: Callable[[int], object] = lambda images: None) -> CostCurve:
        """Train from the initial state with these rates, one per step, until the cost diverges.

        Args:
            advanced: called after each step with the number of images.
        """
        self.network.set_state(self.state)
        costs: list[float] = []
        diverged = False
        with closing(in_order(self.read, self.batches())) as inputs:
            for rate in rates:
                costs.append(self.step(inputs, rate))
                advanced(self.config.batch_size)
                diverged = is_diverged(costs)
                if diverged:
                    break
        return CostCurve(rates[:len(costs)], np.array(costs), diverged)

    def step(self, inputs: Iterator[Inputs], rate: float) -> float:
        """Train a step on the next micro-batches and return its cost."""
        for position in range(self.config.micro_batches - 1):
            self.network.accumulate(*next(inputs), np.int64(position))
        cost, _ = self.network.train(*next(inputs), np.float32(rate))
        return float(cost)

    def batches(self) -> Iterator[TrainingBatch]:
        """Yield the micro-batches of a training, epoch after epoch without end."""
        position = Position()
        while True:
            size = self.network.model.image_size
            batches, steps = epoch_batches(self.config, self.split, size, position, colours=self.colours)
            yield from batches
            position = Position(position.epoch + 1, 0, position.iteration + steps)

    def read(self, batch: TrainingBatch) -> Inputs:
        """Return the inputs of the network for a batch."""
        size = self.network.model.image_size
        if batch.request.crop is None:
            images = np.empty((*self.network.mean.shape, len(batch.labels)), np.uint8)
        else:
            images = np.empty((self.network.mean.shape[0], size, size, len(batch.labels)), np.float32)
        self.reader.read(batch.request, images)
        return batch.inputs(images)


def is_diverged(costs: Sequence[float]) -> bool:
    """Return whether the last cost is not finite, or the smoothed cost is well above its minimum."""
    if not math.isfinite(costs[-1]):
        return True
    smoothed = smooth(costs)
    return bool(smoothed[-1] > DIVERGED * smoothed.min() + MARGIN)
