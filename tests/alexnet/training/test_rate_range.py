"""The learning rate range test: the edge of a curve, the proposal, and runs on the batches of a training."""

import json
import math

import numpy as np
import pytest

from alexnet.data.dataset import open_dataset
from alexnet.training.network import build_model, build_network
from alexnet.training.rate_range import (
    MOST_TRIALS,
    CostCurve,
    RangeTest,
    best_of,
    chance_cost,
    cost_without_learning,
    edge_of,
    first_rate,
    is_plateau,
    next_rate,
    problem_of_sweep,
    problem_of_trials,
    propose,
    rising_rates,
    smooth,
)
from tests import tiny


def curve(costs, rates=None, diverged=False):
    rates = np.full(len(costs), 0.01) if rates is None else rates
    return CostCurve(rates, np.array(costs, float), diverged)


def sweep_with_edge(edge, rng):
    """Return a sweep whose cost is a noisy plateau up to a rate, and rises by half in each step from there on."""
    rates = rising_rates(1e-6, 1, 121)           # 20 steps per decade
    costs = 2.3 + 0.02 * rng.standard_normal(121)
    above = np.flatnonzero(rates > edge)
    costs[above] *= 1.5 ** np.arange(1, len(above) + 1)
    return curve(costs, rates, diverged=True)


@pytest.mark.parametrize("edge", [1e-4, 3e-2])
def test_edge_is_end_of_plateau(edge, rng):
    assert edge <= edge_of(sweep_with_edge(edge, rng)) * 1.13 < 1.13**2 * edge            # a step is a factor of 1.12


def test_smoothed_cost_has_no_bias():
    np.testing.assert_allclose(smooth([3.0] * 5), 3.0)
    np.testing.assert_allclose(smooth([1.0, 2.0]), [1.0, (0.9 * 1 + 2) / 1.9])


def test_proposal_is_below_trial_with_lowest_cost(rng):
    sweep = sweep_with_edge(1e-2, rng)
    trials = [
        curve([2.3, 0.1], np.full(2, 0.4), diverged=True), curve(np.linspace(2.3, 2.0, 40), np.full(40, 0.2)),
        curve(np.linspace(2.3, 1.5, 40), np.full(40, 0.1)), curve(np.linspace(2.3, 1.9, 40), np.full(40, 0.05)),
    ]
    assert propose(sweep, trials) == 0.063        # 0.1 / sqrt(2.5)
    assert propose(sweep, [curve([2.31] * 8, np.full(8, 0.1)), curve([2.3] * 8, np.full(8, 0.04))]) == 0.04  # a tie
    assert problem_of_trials(sweep, trials, 2.3) == ""
    assert first_rate(sweep) == pytest.approx(1e-3, rel=0.15)
    assert propose(sweep, []) == pytest.approx(1e-2 / 20, rel=0.15)


@pytest.mark.parametrize(("best", "expected"), [(0.1, (0.1, 0.25, 0.04)), (0.63, (0.1, 0.25, 0.62, 1.6)),
                                               (0.016, (0.1, 0.04, 0.016, 0.0064)), (1e-9, MOST_TRIALS)])
def test_trials_surround_best_rate(best, expected):
    """The final cost of a trial rises with the distance from the best rate; far above, it diverges."""
    trials = []
    while (rate := next_rate(0.1, trials)) is not None:
        distance = np.log(rate / best)
        trials.append(curve([1 + distance**2] * 4, np.full(4, rate), diverged=distance > 1))
    rates = tuple(trial.rates[0] for trial in trials)
    assert rates == expected or len(rates) == expected


@pytest.mark.parametrize(("costs", "diverged", "cause"), [
    ([math.nan], True, "the cost of the first step is nan, before any update"),
    ([2.3, 2.5, 60.0], True, "the cost rises from 2.3 at the lowest rates, 0.01 and above: lower --first"),
    ([2.3] * 20, False, ""),
])
def test_sweep_without_edge_states_cause(costs, diverged, cause):
    assert problem_of_sweep(curve(costs, diverged=diverged)).startswith(cause)
    assert bool(problem_of_sweep(curve(costs, diverged=diverged))) == bool(cause)


@pytest.mark.parametrize(("sweep_diverged", "trial", "cause"), [
    (True, curve([2.3, 9.0], diverged=True), "training diverges at all rates tried"),
    (False, curve([2.3] * 20), "none up to 0.01 lets it diverge"),
    (True, curve([2.3] * 20), "that of the initial weights, 2.3, in 20 steps"),
])
def test_trials_without_progress_state_cause(sweep_diverged, trial, cause):
    assert cause in problem_of_trials(curve([2.3] * 20, diverged=sweep_diverged), [trial], 2.3)


@pytest.mark.parametrize(("sweep_diverged", "trial", "expected"), [
    (True, curve([2.3] * 20), True), (False, curve([2.3] * 20), False), (True, curve([2.3] * 10 + [2.2] * 10), False),
    (True, curve([2.3, 9.0], diverged=True), False),
])
def test_only_cost_that_longer_trials_may_lower_is_on_plateau(sweep_diverged, trial, expected):
    assert is_plateau(curve([2.3] * 20, diverged=sweep_diverged), [trial], 2.3) == expected


def test_cost_at_chance_is_no_progress():
    """The initial cost of GoogLeNet is far above that of equal probabilities, so a fall to it means nothing."""
    chance = chance_cost(np.repeat(np.arange(10), 3), [0.3, 0.3])
    assert chance == pytest.approx(1.6 * np.log(10))
    sweep = curve([9.0] * 20, diverged=True)
    before = cost_without_learning(sweep, chance)
    trial = curve([9.0] + [3.67] * 19)
    assert "of equal probabilities, 3.684, in 20 steps" in problem_of_trials(sweep, [trial], before)


def test_rates_fall_until_one_learns():
    """At 0.08 and above, ReLUs die: the cost does not change. At 0.032 it falls by 2 %."""
    trials = []
    while (rate := next_rate(0.5, trials, 2.3)) is not None:
        trials.append(curve([2.3 if rate > 0.05 else 2.25 + 0.05 * np.log(rate / 0.03)**2] * 4, np.full(4, rate)))
    assert [trial.rates[0] for trial in trials] == [0.5, 0.2, 0.08, 0.032, 0.013]
    assert best_of(trials, 2.3).rates[0] == 0.032
    assert propose(curve([2.3]), trials, 2.3) == 0.02


def range_test(config):
    """Return the RangeTest of these settings."""
    data = open_dataset(config.data)
    model = build_model(config, data.classes)
    return RangeTest(config, build_network(config, model, data.mean), data.train)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"pca_colour": 0.1}, {"use_data_layer": "false", "micro_batch_size": 2}])
def test_constant_rate_repeats_training_to_the_bit(changes, tmp_path):
    """Two epochs: order of the files, crops, dropout and updates are those of the training; also in a second run."""
    data = tiny.make_data(tmp_path / "data")
    changes = {"learning_rate": 0.001, "lr_policy": "constant", "validation": "false", **changes}
    folder = tiny.run(data, tmp_path, **changes)
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]
    costs = [record["cost"] for record in records if record["kind"] == "train"]
    test = range_test(tiny.settings(data, tmp_path, **changes))
    assert len(costs) == 12
    for _ in range(2):
        np.testing.assert_array_equal(np.float32(test.run(np.full(12, 0.001)).costs), np.float32(costs))


def test_diverging_run_stops_early(tmp_path):
    test = range_test(tiny.settings(tiny.make_data(tmp_path / "data"), tmp_path))
    sweep = test.run(rising_rates(1e-6, 1e6, 60))
    assert sweep.diverged
    assert len(sweep.costs) == len(sweep.rates) < 60
    assert sweep.rates[-1] < 100
