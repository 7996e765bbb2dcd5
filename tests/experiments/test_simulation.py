"""The simulation in virtual time: the clock matches hand-computed cases, and runs are reproducible and match MPI."""

import re
from itertools import pairwise

import numpy as np
import pytest

from experiments.asgd import Costs, Simulation, measured, order_of
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.rules.easgd_ranks import LONG
from tests.multigpu.rules.fakes import RATE, TrainableToyNetwork, toy_settings

pytestmark = pytest.mark.mpi

STEP = Costs(step=1.0)
DEAR = Costs(step=1.0, copy=2.0, transfer=3.0, apply=4.0)


class SharedNetwork(TrainableToyNetwork):
    """A TrainableToyNetwork that all clients share: the active client selects the seed of its noise."""

    def __init__(self, length=10, **how):
        super().__init__(length, **how)
        self.set(1)

    def take_step(self, exchange, client, step):
        self.seed, self.steps = client, step - 1
        exchange.step(rate=RATE)
        return client, step


def simulate(clients, costs=STEP, paces=None, jitter=0.0, length=10, how=None, seconds=np.inf, steps=None, order=None,
             take_step=None, **settings):
    """Simulate SharedNetwork with rule asgd; return (the Simulation at its end, its Intervals)."""
    network = SharedNetwork(length, **(how or {}))
    simulation = Simulation(toy_settings(**{"rule": "asgd"} | settings), network, clients, costs, paces, jitter)
    return simulation, list(simulation.run(take_step or network.take_step, seconds, steps, order))


def idle(exchange, client, step):
    """Take a step without training, for tests of the clock only."""
    return client, step


def center_of(simulation):
    with simulation.center():
        return [np.array(v.get_value()) for v in simulation.network.parameters_and_velocities[:2]]


# ---- the clock


def test_clock_of_one_client_matches_formula():
    _, (first, second) = simulate(1, DEAR, n_sync=5, steps=10)
    assert (first.begun, first.ended, first.arrived, first.served) == (0, 5, 7, 7 + 3 + 4 + 3)
    assert (second.begun, second.ended, second.arrived) == (17 + 2, 24, 26)
    np.testing.assert_array_equal(second.times(), [20, 21, 22, 23, 24])
    assert second.results == [(1, step) for step in range(6, 11)]


def test_push_without_fetch_ends_with_the_upload():
    _, (push, fetch, _) = simulate(1, DEAR, n_push=5, n_fetch=7, steps=8)
    assert (push.arrived, push.served) == (7, 7 + 3 + 4)
    assert (fetch.begun, fetch.ended, fetch.arrived) == (7 + 3, 12, 14)
    assert fetch.served == 14 + 3                # no upload and no update


def test_clients_are_served_in_order_of_arrival():
    simulation, intervals = simulate(3, DEAR, [1.2, 1.0, 1.4], n_sync=5, steps=10)
    assert [each.client for each in intervals[:3]] == [2, 1, 3]
    assert [each.served for each in intervals[:3]] == [17, 27, 37]
    waits = {push["client"]: push["waiting"] for push in simulation.log.pushes if push["iteration"] == 5}
    assert waits == pytest.approx({2: 0, 1: 1000 * (17 - 8), 3: 1000 * (27 - 9)})


def test_last_steps_end_in_time_and_are_pushed():
    simulation, intervals = simulate(2, DEAR, n_sync=70, seconds=120.5, take_step=idle)
    assert max(each.ended for each in intervals if each.results) <= 120.5
    assert [each.last for each in intervals if each.client == 1] == [70, 70 + 120 - 84]
    assert len(simulation.log.pushes) == 4


@pytest.mark.parametrize("clients", [2, 5, 16])
@pytest.mark.parametrize("jitter", [0, 0.2])
def test_staleness_of_equal_clients_is_clients_minus_one(clients, jitter):
    simulation, _ = simulate(clients, Costs(1.0, 0.1, 0.01, 0.01), jitter=jitter, n_sync=10, steps=500, take_step=idle)
    staleness = [push["staleness"] for push in simulation.log.pushes[clients:]]
    assert np.mean(staleness) == pytest.approx(clients - 1, rel=0.05)


def test_a_slow_client_is_staler_and_delays_no_other():
    with_it, intervals = simulate(4, Costs(1.0, 0.1, 0.01, 0.01), [1, 1, 1, 4], n_sync=10, seconds=4000, take_step=idle)
    staleness = {client: np.mean([push["staleness"] for push in with_it.log.pushes if push["client"] == client])
                 for client in (1, 4)}
    assert staleness[4] == pytest.approx(3 * 4, rel=0.1)         # each of the others pushes four times in between
    assert 2 < staleness[1] < 3
    steps = {client: sum(len(each.results) for each in intervals if each.client == client) for client in (1, 4)}
    _, without = simulate(3, Costs(1.0, 0.1, 0.01, 0.01), n_sync=10, seconds=4000, take_step=idle)
    assert steps[1] >= sum(len(each.results) for each in without if each.client == 1) - 10
    assert steps[1] == pytest.approx(4 * steps[4], rel=0.05)


def test_report_gives_the_saturating_number_of_clients():
    """A client returns every 100 + 4 + 10 seconds; its turn takes 10 of them, so 11.4 clients saturate the server."""
    few, _ = simulate(4, Costs(1.0, 2.0, 3.0, 4.0), n_sync=100, steps=3000, take_step=idle)
    many, intervals = simulate(32, Costs(1.0, 2.0, 3.0, 4.0), n_sync=100, steps=3000, take_step=idle)
    assert re.search("would be saturated from about 1[12] clients on", few.report())
    assert re.search("is saturated from about 1[12] clients on", many.report())
    assert few.log.pushes[-1]["waiting"] == 0 and many.log.pushes[-1]["waiting"] > 100 * 1000
    assert all(later.served >= before.served + 10 for before, later in pairwise(intervals[:-32]))


# ---- training


@pytest.mark.parametrize(
    "often", [{"n_sync": 1}, {"n_sync": 3}, {"n_push": 2, "n_fetch": 3}, {"n_push": 3, "n_fetch": 2}]
)
def test_one_client_is_bit_identical_to_momentum_sgd(often):
    simulation, _ = simulate(1, steps=7, **often)
    alone = SharedNetwork(seed=1)
    for _ in range(7):
        alone.train()
    held = [*center_of(simulation), *simulation.arrays(1)[:2]]
    for found, expected in zip(held, 2 * alone.values()[:2], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("scale", "expected"), [(1, 0.62), ("null", 0.81)])
def test_two_pushes_match_hand_computation(scale, expected):
    """f(w) = w^2 / 2, rate 0.1, no momentum, W = 1, n_sync 2: D = -0.19 of each."""
    simulation, _ = simulate(
        2, how={"momentum": 0, "noise": 0}, n_push=2, n_fetch=100, server_scale=scale, steps=2
    )
    np.testing.assert_allclose(center_of(simulation)[0], expected, rtol=1e-6)


# the server applies D = -0.19 of the first client, then of the second, whose staleness is 1
MOMENTUM_CASES = [
    ({"server_update": "nesterov"}, 1 - 0.19 * (1.9 + 1.9 + 0.81)),
    ({"server_update": "nesterov", "staleness_power": 1}, 1 - 0.19 * (1.9 + 1.9 / 2 + 0.81)),
    ({"server_update": "nesterov", "server_momentum": 0}, 0.62),
    ({"server_update": "delayed_nesterov"}, 1 - 0.19 * (0.5 + 0.5 + 0.9)),      # a period has one push per client
    ({"server_update": "delayed_nesterov", "server_momentum_period": 1}, 1 - 0.19 * (1.9 + 1.9 + 0.81)),
    ({"server_update": "delayed_nesterov", "server_momentum_period": 3}, 1 - 0.19 * 2 / 3),
]


@pytest.mark.parametrize(("settings", "expected"), MOMENTUM_CASES)
def test_two_pushes_with_server_momentum_match_hand_computation(settings, expected):
    simulation, _ = simulate(
        2, how={"momentum": 0, "noise": 0}, n_push=2, n_fetch=100, server_scale=1, steps=2, **settings
    )
    np.testing.assert_allclose(center_of(simulation)[0], expected, rtol=1e-6)


def test_runs_are_reproducible_and_depend_on_the_seed():
    def all_of(seed):
        simulation, intervals = simulate(
            7, DEAR, np.linspace(1, 2, 7), 0.3, n_sync=3, seconds=300, random_seed=seed, server_update="adagrad",
            server_scale=0.01, staleness_power=1,
        )
        return simulation.log.pushes, intervals, [array.tobytes() for array in center_of(simulation)]

    assert all_of(1) == all_of(1)
    assert all_of(1)[0] != all_of(2)[0]


def test_a_thousand_clients_have_separate_weights():
    simulation, intervals = simulate(1024, how={"noise": 1.0}, n_push=100, n_fetch=100, steps=3)
    assert len(intervals) == 1024
    assert len({simulation.arrays(client)[0].tobytes() for client in range(1, 1025)}) == 1024
    alone = SharedNetwork(seed=700, noise=1.0)
    for _ in range(3):
        alone.train()
    np.testing.assert_array_equal(simulation.arrays(700)[0], alone.values()[0])


def test_elastic_averaging_matches_hand_computation():
    """Zhang et al. 2015: center variable 0, workers 1 and 3, in the order 0, 1, 0, 1, alpha 0.5."""
    network = SharedNetwork()
    network.set(0)
    simulation = Simulation(toy_settings(rule="easgd", easgd_tau=1, easgd_alpha=0.5), network, 2, STEP)
    for client, value in ((1, 1), (2, 3)):
        for array in simulation.arrays(client)[:2]:
            array[...] = value
    list(simulation.run(lambda exchange, client, step: None, steps=2))
    found = [simulation.arrays(1)[0][0], simulation.arrays(2)[0][0], center_of(simulation)[0][0]]
    assert found == [1.125, 1.4375, 1.4375]


# ---- comparison with MPI


team = team_of(4)


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(("steps", "length", "settings"), [
    (20, 1000, {"n_sync": 3}),
    (20, 1000, {"n_sync": 2, "server_update": "adadelta", "server_scale": 0.5, "staleness_power": 1}),
    # over MPI the server receives a push of this length in three pieces, which are one push of the period
    pytest.param(8, LONG, {"n_sync": 2, "server_update": "delayed_nesterov", "server_scale": 0.5,
                           "staleness_power": 1}, marks=pytest.mark.slow),
])
def test_replaying_an_mpi_run_is_bit_identical(team, steps, length, settings):
    networks = {rank: {"seed": rank, "delay": 0.001 * rank} for rank in (1, 2, 3)}
    train = "tests.multigpu.rules.asgd_ranks:train"
    ((center, pushes, _), *_) = results(team.run(train, networks, settings, steps, True, length))
    simulation, _ = simulate(3, length=length, steps=steps, order=order_of(pushes), **settings)
    for found, expected in zip(center_of(simulation), center, strict=False):
        np.testing.assert_array_equal(found, expected)
    found = [(push["version"], push["client"], push["staleness"]) for push in simulation.log.pushes]
    assert sorted(found) == sorted((push["version"], push["client"], push["staleness"]) for push in pushes)


# ---- refusals, and costs of this machine


@pytest.mark.parametrize(("change", "sentence"), [
    ({"rule": "gosgd"}, "the simulation supports the rules asgd and easgd, got gosgd"),
    ({"paces": [1, 2, 3]}, "2 clients need 2 paces above 0"),
    ({"paces": [1, 0]}, "2 clients need 2 paces above 0"),
    ({"steps": None}, "a simulation needs an end"),
    ({"order": [1, 3]}, "the order contains client 3, but the clients are"),
    ({"order": [1], "n_push": 3}, "requires n_fetch equal to n_push"),
])
def test_invalid_arguments_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        simulate(2, **{"steps": 4} | change)


def test_costs_of_this_machine_are_measured():
    costs = measured(lambda: None, 100_000, runs=3)
    assert 0 < costs.apply < 1 and 0 < costs.transfer < 1 and 0 <= costs.step < 1
