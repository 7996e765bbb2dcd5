"""The rows, claims and figures of experiments.asgd, from trials too small to give meaningful results."""

import json

import numpy as np
import pytest

from experiments.asgd import Costs, Interval, figures
from experiments.asgd import __main__ as asgd
from experiments.asgd import task as asgd_task
from experiments.asgd.claims import claims, load, saturation, table
from experiments.asgd.experiments import Sizes, trials
from experiments.asgd.trials import Rate, Trial, smoothed, summary, teeth
from experiments.asgd.trials import run as run_trial

pytestmark = pytest.mark.slow

TINY = Sizes(
    (2, 1), 10, (1, 2), 10, 40, (10, 20), (1, 2), 20, 60, 2, (0.02,), 40, (3,), 60, train=320, test=40, seeds=2
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of all experiments, as read back from disk."""
    folder, lines = tmp_path_factory.mktemp("asgd"), []
    asgd.rows_of(asgd.EXPERIMENTS, TINY, folder, processes=0, compiled=False, log=lines.append)
    assert len(lines) == len(asgd.EXPERIMENTS)
    return asgd.read(folder)


@pytest.fixture(scope="module")
def task():
    return asgd_task.task(TINY.train, TINY.test, False)


def test_every_trial_has_a_row(rows):
    for name, group in trials(TINY).items():
        def key(each):
            return each["n_sync"], each["clients"], each["name"], each["seed"]

        assert sorted(map(key, rows[name])) == sorted(key(trial._asdict()) for trial in group)
    for row in rows["warm"]:
        assert 0 < row["end"] <= 1 and 0 <= row["tests"][-1]["test"] <= 1
        assert row["pushes"] == sum(row["staleness"].values()) > 0
        assert len(row["curve"]["seconds"]) == len(row["curve"]["error"])
        assert row["costs"]["copy"] > 0 and row["seconds"] == TINY.warm_seconds


def test_experiment_1_tests_after_each_epoch_of_the_clients(rows):
    one, two = (row for row in rows["curves"] if row["seed"] == 0)
    assert [test["epoch"] for test in one["tests"]] == [1, 2]
    assert len(two["tests"]) == 1 and two["minibatches"] == 8 * TINY.train / asgd_task.BATCH


def test_trials_are_reproducible(rows, task):
    def text(row):
        return json.dumps({name: value for name, value in row.items() if name != "took"})

    for name, group in trials(TINY).items():
        again = run_trial(group[0], task)
        (before,) = (row for row in rows[name] if all(row[key] == getattr(group[0], key) for key in
                     ("n_sync", "clients", "name", "seed")))
        assert text(before) == text(json.loads(json.dumps(again)))


def test_all_figures_and_claims_are_written(rows, tmp_path, capsys):
    pictures = figures.draw(rows, tmp_path)
    assert {path.name for path in pictures} == {
        *(f"figure{n}.png" for n in (1, 2, 3, 4)), "rules.png", "large.png", "server.png"
    }
    assert all(path.stat().st_size > 10_000 for path in pictures)
    found = claims(rows)
    of_the_paper = [claim for claim in found if claim.shows is not None]
    assert len(of_the_paper) == 10 and len(found) == 10 + len(rows["rules"]) + len(rows["large"])
    shown = sum(claim.shows for claim in of_the_paper)
    assert f"{shown} of 10 claims show" in table(found)
    assert table(found).count("DOES NOT SHOW") == 10 - shown
    json.dumps([claim.row() for claim in found])


# ---- claims


def test_unreproduced_claims_are_marked():
    def warm(ends):
        return [{"n_sync": n, "clients": k, "end": end, "teeth": n / 1e5, "jagged": n / 1e4, "minibatches": 10 * n}
                for (n, k), end in ends.items()]

    good = {(100, 1): 0.5, (100, 8): 0.4, (900, 1): 0.5, (900, 8): 0.45}
    shown = claims({"warm": warm(good)})
    assert [claim.shows for claim in shown] == [True, True, True, True, True]
    assert [claim.value for claim in shown] == pytest.approx([2, 5, 1, 8, 5])
    not_shown = claims({"warm": warm(good | {(900, 8): 0.55})})
    assert [claim.shows for claim in not_shown] == [False, False, True, True, True]
    between = claims({"warm": warm(good | {(100, 4): 0.55, (900, 4): 0.47})})
    assert [claim.shows for claim in between][:2] == [False, True] and between[0].value == 1
    assert "DOES NOT SHOW" in table(not_shown) and "3 of 5 claims show" in table(not_shown)


def test_more_clients_start_slower_and_end_steeper():
    def cold(*numbers):
        return [{"clients": k, "early": early, "slope": slope} for k, early, slope in numbers]

    early, late = claims({"cold": cold((1, 0.70, -1.0), (2, 0.72, -1.5), (4, 0.75, -2.0))})
    assert (early.shows, late.shows, early.value, late.value) == (True, True, pytest.approx(5), -2)
    both = [*cold((1, 0.70, -1.0), (2, 0.72, -2.5)), *cold((1, 0.70, -1.0), (2, 0.74, -0.5))]        # two seeds
    assert [claim.value for claim in claims({"cold": both})] == pytest.approx([3, -1.5])
    early, late = claims({"cold": cold((1, 0.70, -3.0), (2, 0.66, -1.5), (4, 0.75, -2.0))})
    assert (early.shows, late.shows) == (False, False)


def test_saturation_matches_hand_computation():
    row = {"clients": 4, "costs": Costs(1, 2, 3, 4)._asdict(), "pushes": 40, "seconds": 1140, "waiting": 0}
    assert load(row) == pytest.approx(400 / 1140)
    assert saturation(row) == pytest.approx(11.4)


# ---- numbers of a row


def interval(client, first, results):
    last = first + len(results)
    return Interval(client, first, last - 1, float(first), float(last), 0.0, 0.0, results)


def test_teeth_are_the_drops_at_an_exchange():
    up = [0.1 * step for step in range(10)]                      # 0.05 in the first fifth, 0.85 in the last
    even = [0.5] * 10
    whole = [interval(1, 1, up), interval(2, 1, even), interval(1, 11, up), interval(2, 11, even)]
    assert teeth([*whole, interval(1, 21, up[:4])]) == pytest.approx((0.8 + 0) / 2)
    assert teeth([interval(1, 1, up)]) == 0


def test_curve_is_a_trailing_moving_average():
    seconds, means = smoothed(np.arange(1.0, 7), np.array([0, 0, 1, 1, 1, 0.0]), window=2)
    assert (seconds, means) == ([2, 3, 4, 5, 6], [0, 0.5, 1, 1, 0.5])


def test_slope_of_a_line_is_exact():
    times = np.arange(1, 2001.0)
    found = summary(times, 0.9 - 1e-4 * times)
    assert found["slope"] == pytest.approx(-10)                  # points per 1,000 s
    assert (found["early"], found["end"]) == (pytest.approx(0.875, abs=1e-3), pytest.approx(0.71, abs=1e-3))


def test_rate_drops_after_three_epochs_without_improvement():
    rate = Rate(0.01)
    falls = [rate.fallen(error) for error in (0.5, 0.4, 0.399, 0.4, 0.4, 0.3, 0.3, 0.3, 0.3)]
    assert falls == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert rate.value == pytest.approx(0.0001)


# ---- rules without a server


def test_single_worker_of_each_rule_matches_one_client(task):
    alone = run_trial(Trial("one", seconds=30.0, costs=Costs(1.0), jitter=0, n_sync=10, rule="asgd"), task)
    for rule, settings in (("bsp", ()), ("gosgd", (("gosgd_p", 0.0),))):
        row = run_trial(
            Trial("one", seconds=30.0, costs=Costs(1.0), jitter=0, rule=rule, settings=settings), task
        )
        assert (row["minibatches"], row["end"], row["tests"]) == (30, alone["end"], alone["tests"])


def test_bsp_step_takes_slowest_worker_plus_ring(task):
    row = run_trial(Trial("ring", 4, rule="bsp", seconds=30.0, costs=Costs(1.0, 0.5, 2.0), jitter=0), task)
    assert row["minibatches"] == 4 * 6           # 1 + 2 x 0.5 + 2 x 3/4 x 2 s per step: the sixth ends at 26
