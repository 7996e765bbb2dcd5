"""The comparison of rules and strategies, from trials too small to give meaningful results; bytes and clock."""

import json

import numpy as np
import pytest

from alexnet.training.factors import size_of
from experiments.asgd import task as asgd_task
from experiments.asgd.peers import Gossip
from experiments.comparison import __main__ as comparison
from experiments.comparison import clock
from experiments.comparison.claims import claims
from experiments.comparison.methods import METHODS, Axis, Sizes, trial_of
from experiments.comparison.search import Trainer, climb, is_saturated
from experiments.comparison.tables import decisions, overview
from experiments.comparison.trajectory import asynchronous, synchronous

pytestmark = pytest.mark.slow

TINY = Sizes(steps=((2, 16),), checkpoints=2, train=320, test=40, published=2, seeds=2)
SHARED, FAST, SLOW = clock.LINKS
PLAIN, OVERLAP, ASA16, ASA16_OVERLAP, FACTORS, _ = clock.STRATEGIES


@pytest.fixture(scope="module")
def task():
    return asgd_task.task(TINY.train, TINY.test, False)


@pytest.fixture(scope="module")
def rows():
    return comparison.rows_of(TINY, processes=0, compiled=False, log=lambda line: None)


def trial(name, workers, values, link=FAST, **change):
    sizes = TINY._replace(steps=((workers, 16),))
    return trial_of(name, workers, link, {"learning_rate": 0.02} | values, sizes)._replace(**change)


# ---- clock and bytes of AlexNet


@pytest.mark.parametrize("workers", [2, 3, 8, 1024])
def test_bytes_of_gradients_match_formula(workers):
    exact = 2 * (workers - 1) / workers * 4 * 60_965_224
    assert clock.bytes_sent(PLAIN, workers) == pytest.approx(exact)
    assert clock.bytes_sent(ASA16, workers) == pytest.approx(exact / 2)
    assert clock.bytes_sent(OVERLAP, workers) == clock.bytes_sent(PLAIN, workers)


@pytest.mark.parametrize("workers", [2, 8, 20, 40, 100])
def test_factors_are_used_where_they_are_smaller(workers):
    for layer, shape in zip(clock.LAYERS[:3], ((4096, 1000), (4096, 4096), (9216, 4096)), strict=True):
        smaller = size_of(shape, clock.BATCH, workers) < np.prod(shape)
        assert clock.uses_factors(layer, workers) == smaller
    assert clock.bytes_sent(FACTORS, workers) <= clock.bytes_sent(PLAIN, workers)


@pytest.mark.parametrize(("strategy", "seconds", "megabytes"), [
    (PLAIN, 2.07, 244.4), (OVERLAP, 0.46, 244.4), (ASA16, 1.04, 122.2), (ASA16_OVERLAP, 0.033, 122.2),
    (FACTORS._replace(overlap=False), 0.187, 23.0), (FACTORS, 0.004, 23.0),
])
def test_clock_matches_measurement_of_two_hosts(strategy, seconds, megabytes):
    """benchmarks/RESULTS.md, "Overlap": 1 Gbit/s, asa32 and asa16."""
    assert clock.visible(strategy, 2, FAST) == pytest.approx(seconds, rel=0.1, abs=0.01)
    assert clock.bytes_sent(strategy, 2) / 1e6 == pytest.approx(megabytes, rel=0.005)


def test_saturation_is_the_number_of_clients_that_fill_the_time():
    turn = 2 * FAST.array + clock.APPLY
    assert clock.saturation(16, FAST) == pytest.approx((16 * clock.STEP + turn) / turn)
    sizes = TINY._replace(steps=((2, 16), (64, 16)))
    assert is_saturated(METHODS["easgd"], 64, FAST, sizes) and not is_saturated(METHODS["bsp"], 64, FAST, sizes)


# ---- trajectories


@pytest.mark.parametrize(("name", "values", "sent"), [
    ("easgd", {"easgd_tau": 4, "easgd_alpha": 0.5}, 4), ("asgd", {"n_sync": 4, "server_scale": 0.5}, 4),
    ("gosgd", {"gosgd_p": 1.0}, 16),
])
def test_bytes_of_asynchronous_rules_are_counted(task, name, values, sent):
    """In 16 steps a worker sends an array every 4 steps, or after each; exchanges take no time here."""
    timed = trial(name, 2, values, jitter=0.0)
    timed = timed._replace(costs=timed.costs._replace(transfer=0.0, apply=0.0))
    points, _ = asynchronous(timed, task, [timed.seconds / 2, 1.01 * timed.seconds])
    assert [point.sent / clock.ARRAY for point in points] == pytest.approx([sent / 2, sent])


def test_overlap_and_factors_keep_the_trajectory():
    trainer = Trainer("bsp", 2, TINY, compiled=False)
    errors = {}
    for link in (SHARED, FAST):
        for strategy in METHODS["bsp"].strategies:
            row = trainer.row(link, strategy, {"learning_rate": 0.02})
            for seconds, sent, error in row["curve"]:
                steps = round(sent / clock.bytes_sent(strategy, 2))
                assert steps == int(seconds / clock.bsp_step(strategy, 2, link))
                assert errors.setdefault(steps, error) == error
    assert len(errors) < len(trainer.rows) * TINY.checkpoints


@pytest.mark.parametrize(("name", "values"), [
    ("bsp", {}), ("local SGD", {"slowmo_steps": 4}), ("asgd", {"n_sync": 4, "server_scale": 1.0}),
    ("gosgd", {"gosgd_p": 0.0}),
])
def test_one_worker_of_each_rule_is_momentum_sgd(task, name, values):
    task.network.set_state(task.begin)
    batches = asgd_task.Batches(task, TINY.seed, 1)
    for _ in range(16):
        task.network.train(*batches.next(), np.float32(0.02))
    expected = asgd_task.error_on_test(task)
    alone = trial(name, 1, values, jitter=0.0)
    if METHODS[name].synchronous:
        found = synchronous(alone, task, {16})[16]
    else:
        alone = alone._replace(costs=clock.Costs(clock.STEP))
        found = asynchronous(alone, task, [1.01 * alone.seconds])[0][-1].error
    assert found == expected


def test_local_sgd_that_averages_each_step_is_bsp(task):
    trained = []
    for name, values in (("bsp", {}), ("local SGD", {"slowmo_steps": 1})):
        synchronous(trial(name, 3, values), task, {16})
        trained.append(np.concatenate([v.get_value().ravel() for v in task.network.parameters]))
    assert np.ptp(trained[0]) > 0.1
    np.testing.assert_allclose(*trained, atol=1e-6)


def test_a_worker_sends_and_receives_one_push_at_a_time(task):
    """A push takes ten steps, so a worker that pushes after each step sends one every ten steps."""
    slow = trial("gosgd", 3, {"gosgd_p": 1.0}, jitter=0.0)
    slow = slow._replace(seconds=100 * clock.STEP, costs=clock.Costs(clock.STEP, transfer=10 * clock.STEP))
    workers = Gossip(task, slow)
    assert len(list(workers.run(1.0))) < 3 * 20
    assert 3 * 5 <= workers.pushes <= 3 * 11
    assert sum(worker.share for worker in workers._workers) <= 1


# ---- search, files and figures


def test_search_finds_the_minimum():
    axes = [Axis("x", (1, 2, 3, 4, 5), 0), Axis("y", (1, 2, 3), 2)]
    assert climb(axes, lambda at: (at["x"] - 4) ** 2 + (at["y"] - 1) ** 2) == {"x": 4, "y": 1}


def test_trials_are_reproducible(rows):
    again = comparison.rows_of(TINY, ("bsp", "easgd", "gosgd"), processes=0, compiled=False, log=lambda line: None)
    before = [row for row in rows if row["method"] in ("bsp", "easgd", "gosgd")]
    assert json.dumps(again) == json.dumps(before)


def test_every_method_has_a_best_row_and_figures_are_drawn(rows, tmp_path):
    comparison.save(rows, tmp_path)
    best, trials = comparison.read(tmp_path)
    assert {row["method"] for row in best if row["best"]} == set(METHODS)
    assert len(trials) == len(rows)
    assert all(row["error"] == pytest.approx(np.mean(row["errors"])) and len(row["errors"]) == 2 for row in best)
    pictures = comparison.draw(best, trials, tmp_path)
    assert {path.stem for path in pictures} == {"time", "bytes", "workers", "interval", "steps"}
    assert all(path.stat().st_size > 10_000 for path in pictures)
    found = claims(best, trials)
    assert len(found) > 10 and all(claim.shows in (True, False) for claim in found[1:])
    for name in ({*METHODS} - {"bsp, float16"}):
        assert name in decisions(best) and name in overview(best)
