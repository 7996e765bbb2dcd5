"""NoLoCo: the outer step and its identities, and complete runs over MPI of workers that exchange in random pairs."""

import shutil
from collections import Counter

import numpy as np
import pytest

from alexnet.run import checkpoint_format
from alexnet.training.loop import Position
from multigpu.communicator import DesyncError
from multigpu.exchange.flat_buffer import BLOCK
from multigpu.rules import Role
from multigpu.rules.noloco import outer_step, partner
from multigpu.rules.slowmo import slow_momentum_step
from tests import tiny
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.rules.fakes import STEPS, part_at, toy_settings, train_py

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(4)
TASKS = "tests.multigpu.rules.noloco_ranks"
SLOW = {0: 0.001, 1: 0.01, 2: 0.0, 3: 0.004}     # seconds per step, by rank: all speeds differ
SEED = toy_settings().random_seed


class Workers:
    """N workers by the equations of the paper, in float64: the reference."""

    def __init__(self, phi, alpha, beta, gamma):
        self.theta, self.phi, self.m = np.array(phi), np.array(phi), np.zeros_like(phi)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def outer_step(self, pairs):
        for pair in map(list, pairs):
            difference = np.mean(self.theta[pair] - self.phi[pair], axis=0)
            pull = np.mean(self.phi[pair], axis=0) - self.phi[pair]
            self.m[pair] = self.alpha * self.m[pair] + self.beta * difference + self.gamma * pull
        self.phi += self.m
        self.theta[:] = self.phi


def pairs_of(size, step, seed=SEED):
    return {frozenset((rank, partner(seed, rank, size, step))) for rank in range(size)}


def step_pair(theta, phi, m, pair, alpha, beta, gamma):
    """Apply outer_step to the workers of a pair, which may be one worker."""
    one, *other = pair
    other = other[0] if other else one
    fast, slow = theta.copy(), phi.copy()
    for mine, theirs in {(one, other), (other, one)}:
        partner_slow = None if gamma == beta else slow[theirs]
        outer_step(theta[mine], phi[mine], m[mine], fast[theirs], partner_slow, alpha, beta, gamma)


# ---- the outer step


@pytest.mark.parametrize("gamma", [0.7, 0.2, 0.0])
@pytest.mark.parametrize("length", [1, 7, 2 * BLOCK + 3])
def test_outer_step_matches_the_equations(length, gamma):
    rng, constants = np.random.default_rng(length), (0.5, 0.7, gamma)
    workers = Workers(rng.normal(size=(5, length)), *constants)
    theta, phi, m = workers.theta.copy(), workers.phi.copy(), workers.m.copy()
    for step in range(4):
        local = rng.normal(size=theta.shape)
        theta += local
        workers.theta += local
        for pair in pairs_of(5, step):
            step_pair(theta, phi, m, pair, *constants)
        workers.outer_step(pairs_of(5, step))
        np.testing.assert_allclose(phi, workers.phi, rtol=0, atol=1e-12)
        np.testing.assert_allclose(m, workers.m, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(theta, phi)


def test_outer_step_matches_hand_computation():
    """All numbers are exact in binary."""
    theta, phi, m = np.array([[2.0], [6.0]]), np.array([[1.0], [3.0]]), np.array([[4.0], [0.0]])
    step_pair(theta, phi, m, (0, 1), 0.5, 0.5, 0.25)         # mean(theta - phi) = 2, mean(phi) = 2
    assert m.ravel().tolist() == [2 + 1 + 0.25, 0 + 1 - 0.25]
    assert phi.ravel().tolist() == theta.ravel().tolist() == [4.25, 3.75]
    theta += [[1], [-2]]
    step_pair(theta, phi, m, (0, 1), 0.5, 0.5, 0.5)          # mean(theta) = 3.5
    assert m.ravel().tolist() == [1.625 - 0.375, 0.375 - 0.125]
    assert phi.ravel().tolist() == [5.5, 4.0]
    theta[1] += 8
    step_pair(theta, phi, m, (1,), 0.5, 0.5, 0.5)            # a worker without a partner
    assert m[1] == 0.125 + 4 and theta[1] == phi[1] == 8.125


@pytest.mark.parametrize(("gamma", "n"), [(0.7, 5), (0.1, 5), (0.0, 4), (0.7, 2)])
def test_mean_over_workers_is_slowmo(gamma, n):
    """With any pairs and gamma. Two workers with gamma = beta have equal slow weights, so each of them is slowmo."""
    rng, alpha, beta, rate = np.random.default_rng(n), 0.5, 0.7, 0.125
    theta = np.tile(rng.normal(size=9), (n, 1))
    phi, m = theta.copy(), np.zeros_like(theta)
    slow, momentum = phi[0].copy(), np.zeros(9)
    for step in range(40):
        theta += rate * rng.normal(size=theta.shape)
        slow_momentum_step(theta.mean(axis=0), slow, momentum, beta, alpha, rate)
        for pair in pairs_of(n, step):
            step_pair(theta, phi, m, pair, alpha, beta, gamma)
        np.testing.assert_allclose(phi.mean(axis=0), slow, rtol=0, atol=1e-12)
        np.testing.assert_allclose(m.mean(axis=0), -beta * rate * momentum, rtol=0, atol=1e-12)
    if n == 2:
        np.testing.assert_array_equal(phi[0], phi[1])
        np.testing.assert_allclose(phi[0], slow, rtol=0, atol=1e-12)


def test_gamma_pulls_the_slow_weights_together():
    """Without local steps the mean stays, and the spread vanishes; gamma = 0 keeps all."""
    rng = np.random.default_rng(0)
    initial = rng.normal(size=(6, 9))
    for gamma in (0.7, 0.0):
        theta, phi, m = initial.copy(), initial.copy(), np.zeros_like(initial)
        for step in range(200):
            for pair in pairs_of(6, step):
                step_pair(theta, phi, m, pair, 0.5, 0.7, gamma)
        np.testing.assert_allclose(phi.mean(axis=0), initial.mean(axis=0), rtol=0, atol=1e-12)
        if gamma:
            np.testing.assert_allclose(phi, np.tile(initial.mean(axis=0), (6, 1)), rtol=0, atol=1e-6)
        else:
            np.testing.assert_allclose(phi, initial, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 5, 6])
def test_pairs_are_disjoint_random_and_equal_on_all_ranks(size):
    drawn = Counter(pair for step in range(1000) for pair in pairs_of(size, step, seed=7))
    for step in range(100):
        assert sorted(rank for pair in pairs_of(size, step) for rank in pair) == list(range(size))
        assert sum(len(pair) == 1 for pair in pairs_of(size, step)) == size % 2
    expected = 1000 / (size if size % 2 else size - 1)       # each pair, and each worker without a partner
    assert all(count == pytest.approx(expected, abs=5 * expected**0.5) for count in drawn.values())
    assert len(drawn) == size * (size - 1) // 2 + (size if size % 2 else 0)
    if size > 2:
        lists = [[pairs_of(size, step, seed) for step in range(20)] for seed in (1, 2)]
        assert lists[0] != lists[1]


# ---- over MPI


@pytest.mark.parametrize(("changes", "on_host"), [({}, True), ({"noloco_gamma": 0.25}, True), ({}, False)])
def test_ranks_match_the_equations(team, changes, on_host):
    """Three ranks start with theta - phi = 0.5, as from a checkpoint; b is a running statistic."""
    pulls, size = [1.0, 0.25, 0.5], 3
    ranks = results(team.run(f"{TASKS}:outer_steps", pulls, 14, {"noloco_steps": 2} | changes, on_host, 0.5, size=size))
    workers, statistic = Workers([-0.5] * size, 0.5, 0.7, changes.get("noloco_gamma", 0.7)), np.zeros(size)
    workers.theta[:] = 0
    for step in range(1, 15):
        workers.theta -= pulls
        statistic -= pulls
        if step % 2 == 0:
            pairs = pairs_of(size, step)
            workers.outer_step(pairs)
            for pair in map(list, pairs):
                statistic[pair] = statistic[pair].mean()
        for rank, (found, _) in enumerate(ranks):
            assert found[step - 1] == pytest.approx([workers.theta[rank], statistic[rank], step], rel=1e-5)
    expected = [each.mean() for each in (workers.theta, workers.m, workers.theta - workers.phi)]
    for _, consensus in ranks:
        assert consensus == pytest.approx(expected, rel=1e-5)


def test_consensus_does_not_change_the_training(team):
    arguments = f"{TASKS}:outer_steps", [1.0, 0.3, 0.5, 0.7], 15, {"noloco_steps": 3}
    often, never = (results(team.run(*arguments, True, 0.0, every)) for every in (2, None))
    assert often == never
    found, consensus = never[0]
    assert consensus[0] == pytest.approx(np.mean([each[-1][0] for each, _ in never]), rel=1e-6)
    assert consensus[1] and consensus[2] == 0                # after an outer step theta is equal to phi


def test_two_ranks_are_slowmo(team):
    """alpha = 0, because the momentum of slowmo depends on the rate, which drops in these runs."""
    def run(**changes):
        return results(team.run("tests.multigpu.rules.bsp_ranks:train", 60, changes, size=2))

    noloco = run(rule="noloco", noloco_steps=3, noloco_alpha=0, noloco_beta=0.75)
    slowmo = run(rule="slowmo", slowmo_steps=3, slowmo_beta=0, slowmo_alpha=0.75, slowmo_buffers="maintain")
    assert noloco[0].weights[2::3] == noloco[1].weights[2::3]
    assert noloco[0].weights[0] != noloco[1].weights[0]
    expected = slowmo[0].states[60]
    for name in ("conv1.W", "fc2.W", "fc3.b"):
        tolerance = 1e-5 * np.abs(expected[name]).max()
        np.testing.assert_allclose(noloco[0].states[60][name], expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_slow_worker_delays_only_its_partner(team):
    other = partner(SEED, 0, 4, 1)
    waits = results(team.run(f"{TASKS}:wait_for_partner", 0, 1.0))
    assert waits[other] > 0.5
    assert all(wait < 0.5 for rank, wait in enumerate(waits) if rank != other)


@pytest.mark.parametrize("changes", [{}, {"noloco_gamma": 0.25}])
def test_validation_is_sharded_and_the_mean_saved(team, changes):
    """The mean over the ranks does not depend on the pairs."""
    ranks = results(team.run(f"{TASKS}:train", SLOW, {"noloco_steps": 3, "n_epochs": 3} | changes))
    one = Workers([0.0], 0.5, 0.7, 0.0)
    for step in range(1, 3 * STEPS + 1):
        one.theta -= (1 + 0.5 + 0.25 + 0.125) / 4
        if step % 3 == 0:
            one.outer_step([(0,)])
        if step % STEPS == 0:
            for rank in ranks:
                assert rank["validated"][step - 1] == pytest.approx(one.theta[0], rel=1e-5)
    for rank in ranks:
        assert rank["position"][:3] == (3, 0, 3 * STEPS) and rank["steps"] == 3 * STEPS
        assert [each["images"] for each in rank["validations"]] == [16 * STEPS // 4 * 4] * 3
        assert rank["position"].errors == (0.5, 0.5, 0.5)
    position, values = ranks[0]["saved"][-1]
    assert position == ranks[0]["position"]
    assert values[0][0] == pytest.approx(one.theta[0], rel=1e-5)


@pytest.mark.parametrize("asked", [0, 1, 2, 3])
@pytest.mark.parametrize("question", [3, STEPS + 1, 2 * STEPS + 9])
def test_stop_of_any_rank_ends_all_and_pairs_agree(team, asked, question):
    """As for gosgd. Besides, both of a pair do an outer step, or none does, and all ranks hold the same mean."""
    changes = {"noloco_steps": 2, "n_epochs": 40}
    ranks = results(team.run(f"{TASKS}:train", SLOW, changes, {asked: question}, seconds=30))
    assert all(rank["position"].epoch < 40 for rank in ranks)
    position, values = ranks[0]["saved"][-1]
    assert position == ranks[0]["position"]
    assert [each for each, _ in ranks[0]["saved"]].count(position) == 1
    for number, rank in enumerate(ranks):
        np.testing.assert_array_equal(rank["saved"][-1][1][0], values[0])
        for step in range(2, rank["done"] + 1, 2):
            assert ranks[partner(SEED, number, 4, step)]["done"] >= step


@pytest.mark.parametrize(("rule", "changes"), [("noloco", {"noloco_steps": 2}), ("gosgd", {"gosgd_p": 0.5})])
def test_stop_between_two_steps_ends_all(team, rule, changes):
    steps = results(team.run(f"{TASKS}:stop_without_a_step", rule, changes, seconds=20))
    assert steps[0] == 1 and all(steps)


def test_training_resumes_within_an_epoch_until_n_iterations(team):
    changes = {"noloco_steps": 2, "n_epochs": 9, "n_iterations": 8}
    ranks = results(team.run(f"{TASKS}:train", SLOW, changes, None, Position(0, 3, 3)))
    assert [rank["steps"] for rank in ranks] == [5] * 4
    assert [rank["position"][:3] for rank in ranks] == [(1, 3, 8)] * 4


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("another step", "rank 1 sent PairPush of step 8, rank 0 waits for PairPush of step 4: the workers are out of"),
        ("an outer step that is over", "rank 1 sent PairPush of step 0, rank 0 waits for PairPush of "),
        ("another rule's message", "rank 1 sent Grant of step 4, rank 0 waits for Stop or GossipTiming or PairPush:"),
    ],
)
def test_protocol_violation_is_reported(team, case, sentence):
    first = team.run(f"{TASKS}:violate_protocol", case, size=2)[0]
    with pytest.raises(DesyncError, match=sentence):
        raise first


# ---- complete runs


def test_every_rank_trains_and_validates_its_share():
    assert part_at(toy_settings(rule="noloco"), 2, 4) == Role(2, 4, (2, 4), ("train", "validate"))


def test_two_workers_without_velocities_resume_bit_exactly(tmp_path):
    """At an outer step they have equal state."""
    data = tiny.make_data(tmp_path / "set", train=32)        # 4 steps per epoch for each of 2 workers
    given = {"use_momentum": "false", "n_epochs": 2, "snapshot_iterations": 2, "keep_snapshots": "null"}
    output = train_py(2, tmp_path, data=data, run_name="run", rule="noloco", noloco_steps=2, **given)
    assert "finished 2 epochs (8 iterations)" in output
    expected = tiny.final(tmp_path / "run")
    assert any(name.endswith("outer_momentum") and array.any() for name, array in expected.items())
    folder = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for path in checkpoint_format.snapshots(folder):
        if path != checkpoint_format.snapshot_path(folder, 6):
            path.unlink()
    output = train_py(2, tmp_path, resume_train=folder, **given)
    assert "finished 2 epochs (8 iterations)" in output
    arrays = tiny.final(folder)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
