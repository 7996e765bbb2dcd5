"""GOSGD: the equations, and complete runs over MPI of workers that push at random and compute a consensus."""

from collections import Counter, deque

import numpy as np
import pytest

from alexnet.run import checkpoint_format
from alexnet.run.recorder import read_records
from alexnet.training.loop import Position
from multigpu.communicator import DesyncError
from multigpu.exchange.flat_buffer import BLOCK
from multigpu.rules import Role
from multigpu.rules.gosgd import halved, merged, receiver
from tests import tiny
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.rules.fakes import STEPS, part_at, toy_settings, train_py

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(4)
TASKS = "tests.multigpu.rules.gosgd_ranks"
SLOW = {0: 0.001, 1: 0.01, 2: 0.0, 3: 0.004}     # seconds per step, by rank: all speeds differ


# ---- the equations


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [1, 7, BLOCK, 2 * BLOCK + 3])
def test_merge_matches_the_equation(length, dtype):
    rng = np.random.default_rng(length)
    weights, pushed = rng.normal(size=(2, length)).astype(dtype)
    expected = [(0.3 * float(w) + 0.1 * float(x)) / (0.3 + 0.1) for w, x in zip(weights, pushed, strict=True)]
    assert merged(weights, 0.3, pushed, 0.1) == 0.3 + 0.1
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-15 if dtype == "float64" else 5e-7)
    assert weights.dtype == dtype


def test_random_pushes_conserve_shares_and_weights():
    rng, n = np.random.default_rng(0), 5
    weights, shares, way = rng.normal(size=(n, 9)), [1 / n] * n, deque()
    whole = sum(a * w for a, w in zip(shares, weights, strict=True))
    for _ in range(1000):
        sender = rng.integers(n)
        shares[sender], pushed = halved(shares[sender])
        way.append((weights[sender].copy(), pushed))
        while way and rng.random() < 0.5:
            theirs, share = way.popleft()
            other = rng.integers(n)
            shares[other] = merged(weights[other], shares[other], theirs, share)
        assert sum(shares) + sum(share for _, share in way) == pytest.approx(1, abs=1e-14)
        total = sum(a * w for a, w in zip(shares, weights, strict=True)) + sum(a * w for w, a in way)
        np.testing.assert_allclose(total, whole, rtol=0, atol=1e-12)


def test_recipients_are_uniform_with_probability_p():
    drawn = Counter(receiver(7, 2, 4, step, 0.25) for step in range(8000))
    assert drawn.keys() == {None, 0, 1, 3}
    assert drawn[None] == pytest.approx(6000, abs=200)
    assert [drawn[other] for other in (0, 1, 3)] == pytest.approx([667] * 3, abs=100)
    assert {receiver(7, rank, 2, 1, 1.0) for rank in (0, 1)} == {0, 1}
    assert [receiver(7, 0, 4, step, 0.0) for step in range(100)] == [None] * 100


def test_workers_draw_independently_by_seed():
    lists = [[receiver(seed, rank, 4, step, 0.5) for step in range(60)] for seed, rank in ((1, 0), (1, 1), (2, 0))]
    assert len({tuple(each) for each in lists}) == 3
    assert lists[0] == [receiver(1, 0, 4, step, 0.5) for step in range(60)]


# ---- over MPI


@pytest.mark.parametrize("on_host", [True, False])
def test_two_pushes_match_hand_computation(team, on_host):
    zero, one = results(team.run(f"{TASKS}:push_in_order", (1, 3), [(0, 1), (1, 0)], on_host, size=2))
    assert [share for _, share in zero] == [0.25, 0.625] and [share for _, share in one] == [0.75, 0.375]
    assert [w for w, _ in one] == pytest.approx([2.333333, 2.333333], abs=1e-6)
    assert [w for w, _ in zero] == pytest.approx([1, 1.8], abs=1e-6)


def test_pushes_at_unequal_speeds_reach_consensus_without_loss(team):
    """p = 1: every rank pushes after each step, none blocks; the consensus is the mean of the initial values."""
    ranks = results(team.run(f"{TASKS}:gossip", 250, 1.0, [0.0, 0.002, 0.0005, 0.004]))
    assert sum(rank["share"] for rank in ranks) == pytest.approx(1, abs=1e-12)
    assert sum(rank["arrived"] for rank in ranks) == 1000
    for array in range(2):                                   # W and b, which a push contains
        initial = np.mean([rank["initial"][array].astype(float) for rank in ranks], axis=0)
        total = sum(rank["share"] * rank["own"][array].astype(float) for rank in ranks)
        np.testing.assert_allclose(total, initial, rtol=0, atol=2e-5)
        for rank in ranks:
            np.testing.assert_allclose(rank["consensus"][array], initial, rtol=0, atol=2e-5)
    for array in (2, 3):                                     # velocities: not pushed; the consensus uses the shares
        consensus = sum(rank["share"] * rank["initial"][array].astype(float) for rank in ranks)
        for rank in ranks:
            np.testing.assert_allclose(rank["consensus"][array], consensus, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(rank["own"][array], rank["initial"][array])
    assert [rank["stop"] for rank in ranks] == [False] * 4


def test_consensus_includes_messages_in_transfer(team):
    assert results(team.run(f"{TASKS}:push_late", size=2)) == [0.75, 0.25]


def test_workers_keep_their_weights_after_a_consensus(team):
    ranks = results(team.run(f"{TASKS}:gossip", 3, 0.0, [0.0] * 4))
    for rank in ranks:
        np.testing.assert_array_equal(rank["own"][0], rank["initial"][0])
        assert np.abs(rank["consensus"][0] - rank["own"][0]).max() > 0.01


@pytest.mark.parametrize("p", [0.01, 1.0])
def test_validation_is_sharded_and_the_consensus_saved(team, p):
    """Every rank subtracts 1/8 per step, so gossip changes the weights only if ranks are at different steps."""
    ranks = results(team.run(f"{TASKS}:train", SLOW, {"gosgd_p": p, "n_epochs": 3}))
    for rank in ranks:
        assert rank["position"][:3] == (3, 0, 3 * STEPS) and rank["steps"] == 3 * STEPS
        assert [each["images"] for each in rank["validations"]] == [16 * STEPS // 4 * 4] * 3
        assert rank["position"].errors == (0.5, 0.5, 0.5)
        for epoch, cost in enumerate((each["cost"] for each in rank["validations"]), 1):
            assert cost == pytest.approx(-epoch * STEPS / 8, abs=1.5 if p == 1 else 0.5)
    position, values = ranks[0]["saved"][-1]
    assert position == ranks[0]["position"]
    assert values[0][0] == pytest.approx(ranks[0]["validated"][-1], abs=1e-6)


@pytest.mark.parametrize("asked", [0, 1, 2, 3])
@pytest.mark.parametrize("question", [0, 3, STEPS, STEPS + 1, STEPS + 2, 2 * STEPS + 9])
def test_stop_of_any_rank_ends_all_and_saves_once(team, asked, question):
    """Rank 2 waits at the end of an epoch long before the others arrive, and rank 1 is last.

    stop_requested() is called before the first step, after each step, at the start of a validation, and for each of its
    batches.
    """
    ranks = results(team.run(f"{TASKS}:train", SLOW, {"gosgd_p": 0.5, "n_epochs": 40}, {asked: question}, seconds=30))
    assert all(rank["position"].epoch < 40 for rank in ranks)
    position, values = ranks[0]["saved"][-1]
    assert position == ranks[0]["position"]
    assert [each for each, _ in ranks[0]["saved"]].count(position) == 1
    for rank in ranks[1:]:                                   # all ranks hold the same values when they save at the end
        np.testing.assert_array_equal(rank["saved"][-1][1][0], values[0])


def test_stop_takes_effect_within_an_epoch(team):
    """Steps of a millisecond, 2,000 per epoch."""
    ranks = results(
        team.run(
            f"{TASKS}:train", dict.fromkeys(range(4), 0.001), {"gosgd_p": 0.1}, {2: 9}, Position(), 2000, seconds=30
        )
    )
    assert ranks[2]["steps"] == 9
    assert all(rank["steps"] < 1000 and not rank["validated"] for rank in ranks)


def test_stops_at_different_steps_between_checkpoints_end_all(team):
    changes = {"gosgd_p": 1.0, "n_epochs": 40, "snapshot_iterations": 2}
    for stops in ({0: 4, 3: 9}, {1: 2, 2: 12}, {0: 1, 1: 1, 2: 1, 3: 1}):
        ranks = results(team.run(f"{TASKS}:train", SLOW, changes, stops, seconds=30))
        assert ranks[0]["saved"][-1][0] == ranks[0]["position"]


def test_training_resumes_within_an_epoch_until_n_iterations(team):
    changes = {"gosgd_p": 0.5, "n_epochs": 9, "n_iterations": 8}
    ranks = results(team.run(f"{TASKS}:train", SLOW, changes, None, Position(0, 3, 3)))
    assert [rank["steps"] for rank in ranks] == [5] * 4
    assert [rank["position"][:3] for rank in ranks] == [(1, 3, 8)] * 4


def test_rank_0_has_the_last_lap_of_each_rank(team):
    first, *others = results(team.run(f"{TASKS}:report_laps"))
    assert [(lap.iteration, lap.seconds) for lap in first][0] == (2, 0)
    assert {lap.seconds for lap in first} == {0, 1, 2, 3} and others == [[]] * 3


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("a push that is lost", r"shares of all ranks must add up to 1, got \[0.5, 0.25\]: a push was lost"),
        ("once too often", "the ranks have entered consensus 1, 2 times, by rank: the workers are out of step"),
        ("another rule's message", "rank 1 sent Grant of step 7, rank 0 waits for Stop or GossipTiming or GossipPush"),
    ],
)
def test_protocol_violation_is_reported(team, case, sentence):
    first = team.run(f"{TASKS}:violate_protocol", case, size=2)[0]
    with pytest.raises(DesyncError, match=sentence):
        raise first


# ---- complete runs


def test_every_rank_trains_and_validates_its_share():
    assert part_at(toy_settings(rule="gosgd"), 2, 4) == Role(2, 4, (2, 4), ("train", "validate"))


def test_train_py_records_saves_and_resumes(tmp_path):
    data = tiny.make_data(tmp_path / "set", train=24)        # 2 steps per epoch for each of 3 workers
    output = train_py(3, tmp_path, data=data, run_name="run", rule="gosgd", update="adadelta", gosgd_p=1, n_epochs=1)
    assert "finished 1 epoch (2 iterations)" in output
    folder = tmp_path / "run"
    arrays, metadata = checkpoint_format.load(checkpoint_format.latest(folder))
    assert metadata["position"]["iteration"] == 2 and metadata["workers"] == 3
    assert any(array.any() for name, array in arrays.items() if name.endswith("squared_step"))
    output = train_py(3, tmp_path, resume_train=folder, update="adadelta", n_epochs=2)
    assert "finished 2 epochs (4 iterations)" in output
    records = read_records(folder)
    assert [record["iteration"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4]
    assert [record["images"] for record in records if record["kind"] == "validation"] == [10, 10]
