"""A-SGD: small hand-computed cases, and a parameter server with its clients over MPI."""

import numpy as np
import pytest

from alexnet.config.schema import ConfigError
from multigpu.rules import Role
from multigpu.rules.asgd import Schedule
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.rules.fakes import TrainableToyNetwork, part_at, toy_settings

pytestmark = [pytest.mark.mpi, needs_mpi]
TASKS = "tests.multigpu.rules.asgd_ranks"
STEPS = 7

team = team_of(4)


def single_worker(length, steps):
    """Return the values of a TrainableToyNetwork of this length after `steps` steps without a server."""
    network = TrainableToyNetwork(length)
    network.set(1)
    for _ in range(steps):
        network.train()
    return network.values()


# ---- one client


@pytest.mark.parametrize(
    "often", [{"n_sync": 1}, {"n_sync": 2}, {"n_sync": 3}, {"n_sync": 100}, {"n_push": 2, "n_fetch": 3},
              {"n_push": 3, "n_fetch": 2}, {"n_push": 1, "n_fetch": 100}],
)
def test_one_client_is_bit_identical_to_momentum_sgd(team, often):
    (center, pushes, _), (own, _) = results(team.run(f"{TASKS}:train", {}, often, STEPS, size=2))
    expected = single_worker(center[0].size, STEPS)
    for found, at_the_server, value in zip(own[:2], center, expected, strict=False):
        np.testing.assert_array_equal(found, value)
        np.testing.assert_array_equal(at_the_server, value)
    np.testing.assert_array_equal(own[2], expected[2])           # its velocity
    assert {push["staleness"] for push in pushes} == {0}


def test_backend_with_own_memory_is_bit_identical(team):
    (center, _, _), _ = results(team.run(f"{TASKS}:train", {}, {"n_push": 3, "n_fetch": 2}, STEPS, False, size=2))
    np.testing.assert_array_equal(center[0], single_worker(center[0].size, STEPS)[0])


# ---- several clients


@pytest.mark.parametrize(("scale", "expected"), [(1, 0.62), ("null", 0.81)])
def test_two_stale_pushes_match_hand_computation(team, scale, expected):
    """f(w) = w^2 / 2, rate 0.1, no momentum, W = 1, n_sync 2: D = -0.19 of each."""
    plain = {rank: {"momentum": 0, "noise": 0} for rank in (1, 2)}
    changes = {"n_push": 2, "n_fetch": 100, "server_scale": scale}
    (center, pushes, _), *_ = results(team.run(f"{TASKS}:train", plain, changes, 2, size=3))
    np.testing.assert_allclose(center[0], expected, rtol=1e-6)
    assert sorted(push["staleness"] for push in pushes) == [0, 1]


def test_no_update_is_lost_at_any_push_and_fetch_interval(team):
    """The center variable changes by the sum of all updates that the three clients computed."""
    networks = {rank: {"seed": rank} for rank in (1, 2, 3)}
    changes = {"n_push": 3, "n_fetch": 2, "server_scale": 1}
    (center, pushes, _), *clients = results(team.run(f"{TASKS}:train", networks, changes, 20, True, 1000))
    added = sum(updates for _, updates in clients)
    np.testing.assert_allclose(center[0].astype(float) - 1, added, rtol=0, atol=1e-6 * np.abs(added).max() * 20)
    assert sorted(push["version"] for push in pushes) == list(range(1, 3 * 7 + 1))


def test_slow_client_is_staler_and_delays_no_other(team):
    networks = {rank: {"delay": 0.06 if rank == 3 else 0.002} for rank in (1, 2, 3)}
    (_, pushes, logged), *_ = results(team.run(f"{TASKS}:train", networks, {"n_sync": 2}, 40, True, 10))
    by_client = {client: [push["staleness"] for push in pushes if push["client"] == client] for client in (1, 2, 3)}
    assert by_client[3][0] > 2 * max(np.mean(by_client[1]), np.mean(by_client[2]))   # later it is the only client
    assert {push["bytes"] for push in pushes} == {2 * 4 * 1024}      # both directions, with a FlatBuffer of one page
    assert all(0 <= push["waiting"] < 1000 for push in pushes)
    assert "would be saturated" in logged[-1] and "staleness" in logged[-1]


@pytest.mark.parametrize(("update", "step", "warnings"), [("nesterov", 5, 1), ("nesterov", 0, 0), ("plain", 5, 0)])
def test_restarted_server_accumulators_are_logged(team, update, step, warnings):
    changes = {"server_update": update, "server_scale": 0.1}
    result, _ = results(team.run(f"{TASKS}:resume", changes, step, size=2))
    assert len(result) == warnings and all(f"of server_update={update} are in no" in sentence for sentence in result)


# ---- settings and roles


def test_due_messages_after_a_step():
    often = Schedule(fetch=2, push=3)
    assert [often.due(step) for step in (1, 2, 3, 6)] == [(False, False), (True, False), (False, True), (True, True)]
    assert [often.next_after(step) for step in (0, 2, 3, 4)] == [2, 3, 4, 6]


def test_rank_0_serves_and_validates():
    config = toy_settings(rule="asgd")
    assert part_at(config, 0, 4) == Role(0, 3, (0, 1), ("validate",))
    assert part_at(config, 3, 4) == Role(2, 3, (0, 1), ("train",))


def test_server_update_without_a_rate_is_refused():
    with pytest.raises(ConfigError, match="server_scale must be given with server_update=adagrad"):
        toy_settings(rule="asgd", server_update="adagrad")
