"""EASGD: the equations, and complete runs over MPI of a server whose clients exchange at any time."""

from collections import Counter

import numpy as np
import pytest

from alexnet.config.schema import ConfigError
from alexnet.run import checkpoint_format
from alexnet.run.recorder import read_records
from alexnet.training.loop import Position
from multigpu.communicator import DesyncError
from multigpu.exchange.flat_buffer import BLOCK
from multigpu.rules import Role, rule_of
from multigpu.rules.easgd import elastic_step
from tests import tiny
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.rules.fakes import STEPS, Ranks, part_at, toy_settings, train_py

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(4)
TASKS = "tests.multigpu.rules.easgd_ranks"

# the center variable begins at 0, workers at 1 and 3: (w0, w1, c) after each exchange of the workers 0, 1, 0, 1
HALF = [(0.5, 3, 0.5), (0.5, 1.75, 1.75), (1.125, 1.75, 1.125), (1.125, 1.4375, 1.4375)]
QUARTER = [(0.75, 3, 0.25), (0.75, 2.3125, 0.9375), (0.796875, 2.3125, 0.890625), (0.796875, 1.95703125, 1.24609375)]


# ---- the equations


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [1, 7, BLOCK, 2 * BLOCK + 3])
def test_elastic_step_matches_the_equation(length, dtype):
    rng = np.random.default_rng(length)
    worker, center = rng.normal(size=(2, length)).astype(dtype)
    before = [(float(w), float(c)) for w, c in zip(worker, center, strict=True)]
    elastic_step(worker, center, 0.3)
    expected = np.array([(w - 0.3 * (w - c), c + 0.3 * (w - c)) for w, c in before]).T
    np.testing.assert_allclose([worker, center], expected, rtol=0, atol=1e-15 if dtype == "float64" else 5e-7)
    assert worker.dtype == center.dtype == dtype


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, HALF), (0.25, QUARTER)])
def test_two_workers_and_center_match_hand_computation(alpha, expected):
    workers, center = [np.array([1.0]), np.array([3.0])], np.array([0.0])
    for turn, after in zip((0, 1, 0, 1), expected, strict=True):
        elastic_step(workers[turn], center, alpha)
        assert (workers[0][0], workers[1][0], center[0]) == after


def test_alpha_1_swaps_and_alpha_0_changes_nothing():
    worker, center = np.array([1.0, -5.0]), np.array([3.0, 2.0])
    elastic_step(worker, center, 1)
    assert (worker.tolist(), center.tolist()) == ([3, 2], [1, -5])
    elastic_step(worker, center, 0)
    assert (worker.tolist(), center.tolist()) == ([3, 2], [1, -5])


def test_exchanges_conserve_worker_plus_center():
    rng = np.random.default_rng(0)
    workers, center = rng.normal(size=(4, 9)), rng.normal(size=9)
    for _ in range(1000):
        worker = workers[rng.integers(4)]
        worker += rng.normal(size=9)
        before = worker + center
        elastic_step(worker, center, rng.random())
        np.testing.assert_allclose(worker + center, before, rtol=0, atol=1e-12)


# ---- over MPI


@pytest.mark.parametrize(
    ("alpha", "expected", "on_host"), [(0.5, HALF, True), (0.25, QUARTER, True), (0.5, HALF, False)]
)
def test_clients_and_server_match_hand_computation(team, alpha, expected, on_host):
    """Arrays of three pieces; velocities are not exchanged, and the server saves none."""
    center, *clients = results(team.run(f"{TASKS}:exchange_in_turns", alpha, (1, 3), (0, 1, 0, 1), on_host, size=3))
    for client, (turns, column) in enumerate([((0, 2), 0), ((1, 3), 1)]):
        for found, turn in zip(clients[client], turns, strict=True):
            for weights, velocity in zip(found[:2], found[2:], strict=True):
                np.testing.assert_array_equal(weights, np.float32(expected[turn][column]))
                np.testing.assert_array_equal(velocity, client + 1)
    for array, value in zip(center, [expected[-1][2]] * 2 + [0, 0], strict=True):
        np.testing.assert_array_equal(array, np.float32(value))


def test_random_exchanges_conserve_the_sum(team):
    found = results(team.run(f"{TASKS}:random_walks", 334))
    assert sum(total for total, _ in found) == pytest.approx(sum(added for _, added in found), abs=2e-2)
    assert abs(sum(added for _, added in found)) > 10        # the walks have updates noticeably


def test_every_rank_ends_and_all_steps_are_recorded(team):
    """Each client in turn is ten times slower than the others; the set has 3 * STEPS batches."""
    for slow in (1, 2, 3):
        seen, *clients = results(team.run(f"{TASKS}:train", {slow: 0.02}, {"easgd_tau": 2, "n_epochs": 2}))
        assert [client["steps"] for client in clients] == [2 * STEPS] * 3
        assert seen["position"][:3] == (2, 0, 2 * STEPS) and seen["step"] == 2 * STEPS
        steps = Counter((record["worker"], record["iteration"]) for record in seen["trained"])
        assert steps == Counter((worker, step) for worker in range(3) for step in range(1, 2 * STEPS + 1))
        assert all(record["cost"] == record["iteration"] and record["times"]["calc"] > 0 for record in seen["trained"])
        assert [(each["epoch"], each["iteration"]) for each in seen["validations"]] == [(1, STEPS), (2, 2 * STEPS)]
        assert [position[:3] for position, _ in seen["saved"]] == [(1, 0, STEPS), (2, 0, 2 * STEPS)]
        assert seen["position"].errors == (0.5, 0.5)


def test_server_answers_while_it_validates_a_fixed_center(team):
    """The validation of 10 batches takes longer than all steps of the clients."""
    server, *_ = results(team.run(f"{TASKS}:train", {0: 0.05}, {"easgd_tau": 1, "n_epochs": 3}, size=3))
    batches = 2 * STEPS
    values, marks = server["validated"], server["marks"]
    assert len(values) == 3 * batches
    assert [len(set(values[at : at + batches])) for at in (0, batches, 2 * batches)] == [1, 1, 1]
    assert marks[batches - 1] - marks[0] >= 3                # steps recorded during the first validation
    assert values[-1] < values[0] < 0                        # each step subtracts something
    assert server["validations"][0]["cost"] == values[0]
    assert server["saved"][-1][1][0][0] == values[-1]        # the values validated last are saved


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_stop_of_one_rank_stops_all(team, asked):
    delays, changes = {1: 0.003, 2: 0.001}, {"easgd_tau": 2, "n_epochs": 50}
    server, *clients = results(team.run(f"{TASKS}:train", delays, changes, {asked: 9}, size=3))
    steps, position = [client["steps"] for client in clients], server["position"]
    assert max(steps) < 50 * STEPS and position.iteration <= sum(steps) // 2
    assert server["saved"][-1][0] == position
    assert sum(steps) == len(server["trained"])
    if asked:
        assert steps[asked - 1] == 9                         # called once before the first step, then after each


def test_training_resumes_within_an_epoch_and_at_its_end(team):
    for begin in (Position(0, 3, 3), Position(0, STEPS, STEPS)):
        changes = {"easgd_tau": 2, "n_epochs": 2}
        server, *clients = results(team.run(f"{TASKS}:train", {}, changes, None, begin, size=3))
        assert [client["steps"] for client in clients] == [2 * STEPS - begin.iteration] * 2
        assert [each["iteration"] for each in server["validations"]] == [STEPS, 2 * STEPS]
        assert server["position"][:3] == (2, 0, 2 * STEPS)


def test_n_iterations_counts_per_client(team):
    changes = {"easgd_tau": 1, "n_epochs": 9, "n_iterations": 8, "snapshot_iterations": 3}
    server, *clients = results(team.run(f"{TASKS}:train", {1: 0.01, 2: 0.01}, changes, size=3))
    assert [client["steps"] for client in clients] == [8, 8]
    saved = [position.iteration for position, _ in server["saved"]]
    assert saved == sorted(saved) and {STEPS, 8} < set(saved) and len(saved) >= 4
    assert server["position"][:3] == (1, 3, 8)


def test_lap_is_recorded_when_all_workers_reported(team):
    server, *_ = results(team.run(f"{TASKS}:report_laps"))
    assert [[lap.iteration for lap in laps] for laps in server] == [[0] * 3, [1] * 3]
    assert [sorted(lap.seconds for lap in laps) for laps in server] == [[1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("the same step again", "rank 1 sent Push of step 3, rank 0 waits for Push or Leave of .* after step 3"),
        ("another's name", "rank 1 sends Leave in the name of rank 2"),
    ],
)
def test_protocol_violation_is_reported(team, case, sentence):
    server, *_ = team.run(f"{TASKS}:violate_protocol", case, size=3)
    with pytest.raises(DesyncError, match=sentence):
        raise server


@pytest.mark.parametrize(("update", "step", "warnings"), [("adagrad", 5, 1), ("adagrad", 0, 0), ("auto", 5, 0)])
def test_restarted_accumulators_are_logged(team, update, step, warnings):
    result, _ = results(team.run(f"{TASKS}:resume", update, step, size=2))
    assert len(result) == warnings and all("start at 0 again" in sentence for sentence in result)


# ---- settings and roles


def test_rank_0_validates_and_the_others_train():
    config = toy_settings(rule="easgd")
    assert part_at(config, 0, 4) == Role(0, 3, (0, 1), ("validate",))
    assert part_at(config, 3, 4) == Role(2, 3, (0, 1), ("train",))


@pytest.mark.parametrize("rule", ["easgd", "gosgd"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [("exchange", "asa32"), ("exchange_what", "weights"), ("sync", "cdd"), ("average_every", 2)],
)
def test_settings_of_bsp_are_refused_early(rule, setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is a setting of rule=bsp, so with rule={rule} .*, got {value}"):
        rule_of(toy_settings(**{"rule": rule, setting: value}), Ranks(0, 4))


def test_server_without_a_worker_is_refused():
    with pytest.raises(ConfigError, match="easgd needs a server and at least one worker, so 2 ranks or more, got 1"):
        rule_of(toy_settings(rule="easgd"), Ranks(0, 1))


# ---- complete runs


def test_train_py_records_saves_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("PICTURES", "1")
    data = tiny.make_data(tmp_path / "set", train=16)        # 2 steps an epoch for each of 2 workers
    first = train_py(3, tmp_path, data=data, run_name="run", rule="easgd", easgd_tau=1, n_epochs=1)
    assert "finished 1 epoch (2 iterations)" in first
    folder = tmp_path / "run"
    arrays, metadata = checkpoint_format.load(checkpoint_format.latest(folder))
    assert metadata["position"]["iteration"] == 2 and metadata["workers"] == 2
    assert all(not array.any() for name, array in arrays.items() if name.endswith("velocity"))
    train_py(3, tmp_path, resume_train=folder, n_epochs=2)
    workers = Counter(record["worker"] for record in read_records(folder) if record["kind"] == "train")
    assert workers == {0: 4, 1: 4}
    assert [record["images"] for record in read_records(folder) if record["kind"] == "validation"] == [10, 10]
    output = train_py(2, tmp_path, resume_train=folder, rule="bsp", n_epochs=3)
    assert "finished 3 epochs (6 iterations)" in output
    assert (folder / "learning_curves.png").exists()
