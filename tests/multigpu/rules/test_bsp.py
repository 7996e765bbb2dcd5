"""Rule BSP over MPI: with every exchange, N ranks match one worker with the combined batch and stay identical."""

import numpy as np
import pytest

from alexnet.config.schema import ConfigError
from tests.mpi import needs_mpi, results, team_of

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(4)

STEPS = 60                                       # the rate drops after half of them
# settings of the rule, and whether updates are summed over the N ranks
WAYS = {
    "cdd": ({"sync": "cdd"}, True),
    "gradients": ({"exchange_what": "gradients"}, False),
    "factors": ({"exchange_what": "factors"}, False),
    "weights": ({"exchange_what": "weights"}, False),
    "both": ({"exchange_what": "weights_and_momentum"}, False),
}


@pytest.fixture(scope="module")
def single_worker(team):
    """(size, update) -> the result of one worker with the combined batch of `size` ranks and `size` times the rate."""
    found = {}

    def train(size, update="momentum"):
        if (size, update) not in found:
            arguments = STEPS, size, size, update
            ranks = team.run("tests.multigpu.rules.bsp_ranks:train_combined", *arguments, size=1)
            found[size, update] = results(ranks)[0]
        return found[size, update]

    return train


def train(team, size, changes, factor, update="momentum", steps=STEPS, stop_at=None):
    arguments = steps, changes, factor, 1, update, stop_at
    return results(team.run("tests.multigpu.rules.bsp_ranks:train", *arguments, size=size))


def assert_close(state, expected, tolerance):
    for name, array in expected.items():
        np.testing.assert_allclose(state[name], array, rtol=0, atol=tolerance, err_msg=name)


def assert_one(found, expected):
    """Assert equal weights on all ranks after every step, and those of one worker after the first and the last step."""
    for each in found:
        assert (each.weights, each.costs) == (found[0].weights, found[0].costs)
        assert each.digests[-1] == found[0].digests[-1]      # including velocities: a checkpoint may follow
    weights = {name: array for name, array in expected.states[1].items() if not name.endswith(".velocity")}
    assert_close(found[0].states[1], weights, 1e-6)
    assert_close(found[0].states[STEPS], expected.states[STEPS], 2e-6)


@pytest.mark.parametrize(("size", "way"), [
    (2, "cdd"), (4, "cdd"), (4, "weights"), (3, "both"), (3, "gradients"), (4, "factors"),
])
def test_ranks_match_one_worker_on_combined_batches(team, single_worker, size, way):
    changes, summed = WAYS[way]
    assert_one(train(team, size, changes, 1 if summed else size), single_worker(size))


@pytest.mark.parametrize("exchange", ["ar", "asa32", "copper"])
def test_every_strategy_gives_the_same_weights(team, single_worker, exchange):
    assert_one(train(team, 3, {"exchange_what": "weights", "exchange": exchange}, 3), single_worker(3))


@pytest.mark.parametrize("exchange", ["ar", "asa32", "peer"])
def test_factors_are_gathered_by_every_strategy(team, single_worker, exchange):
    assert_one(train(team, 2, {"exchange_what": "factors", "exchange": exchange}, 2), single_worker(2))


@pytest.mark.parametrize(("update", "way"), [("nesterov", "weights"), ("nesterov", "cdd"), ("sgd", "weights")])
def test_other_linear_updates_match_one_worker(team, single_worker, update, way):
    changes, summed = WAYS[way]
    assert_one(train(team, 2, changes, 1 if summed else 2, update), single_worker(2, update))


@pytest.mark.parametrize("update", ["adagrad", "adadelta"])
@pytest.mark.parametrize("exchange", ["peer", "asa32"])
def test_adaptive_updates_match_one_worker(team, single_worker, update, exchange):
    assert_one(train(team, 2, {"update": update, "exchange": exchange}, 2, update), single_worker(2, update))


@pytest.mark.parametrize(("size", "exchange"), [(2, "ar"), (3, "asa32"), (3, "asa16"), (2, "copper"), (2, "peer")])
def test_overlapped_exchange_is_bit_identical(team, size, exchange):
    changes = {"exchange_what": "gradients", "exchange": exchange}
    plain, overlapped = (train(team, size, changes | {"overlap": value}, 1, steps=10) for value in ("false", "true"))
    for one, other in zip(plain, overlapped, strict=True):
        assert one.digests == other.digests
        assert one.costs == other.costs


def test_weights_are_averaged_every_third_step_and_last(team):
    found = train(team, 3, {"exchange_what": "weights", "average_every": 3}, 1, steps=7)
    identical = [len({str(each.weights[step]) for each in found}) == 1 for step in range(7)]
    assert identical == [False, False, True, False, False, True, True]
    assert found[0].digests[-1] == found[1].digests[-1] == found[2].digests[-1]


@pytest.mark.parametrize("every, last", [(1, 4), (3, 6)])
def test_ranks_stop_at_one_step_in_equal_state(team, every, last):
    changes = {"exchange_what": "weights", "average_every": every}
    found = train(team, 3, changes, 1, steps=20, stop_at={1: 4})
    assert [len(each.costs) for each in found] == [last] * 3
    assert found[0].digests[-1] == found[1].digests[-1] == found[2].digests[-1]


def test_ranks_with_different_settings_are_refused(team):
    for refusal in team.run("tests.multigpu.rules.bsp_ranks:connect_with_different_settings", size=2):
        assert type(refusal) is ConfigError
        assert str(refusal) == "workers 0 and 1 differ in momentum: 0.9 and 0.8; give both the same"


# ---- the equations, float64

N, MU, ETA = 4, 0.9, 5e-4


def gradient(w, batch):
    """The gradient of the mean over a batch of (a.w - b)**2 / 2."""
    a, b = batch
    return a.T @ (a @ w - b) / len(b)


def test_avg_cdd_and_gradients_agree_in_float64():
    rng = np.random.default_rng(0)
    one = avg = cdd = weights_alone = rng.normal(size=5)
    v, mean_v, vs, own = np.zeros(5), np.zeros(5), np.zeros((N, 5)), np.zeros((N, 5))
    for step in range(60):
        lr = 0.01 if step < 30 else 0.001
        a, b = rng.normal(size=(N, 8, 5)), rng.normal(size=(N, 8))
        v = MU * v - N * lr * (gradient(one, (a.reshape(-1, 5), b.ravel())) + ETA * one)
        one = one + v                                        # one worker with all batches, at N times the rate

        vs = np.array([MU * vs[i] - lr * (gradient(cdd, (a[i], b[i])) + ETA * cdd) for i in range(N)])
        cdd = cdd + vs.sum(axis=0)                           # cdd as in Ma et al.

        each = [MU * mean_v - N * lr * (gradient(avg, (a[i], b[i])) + ETA * avg) for i in range(N)]
        avg, mean_v = np.mean([avg + each_v for each_v in each], axis=0), np.mean(each, axis=0)

        own = np.array([MU * own[i] - N * lr * (gradient(weights_alone, (a[i], b[i])) + ETA * weights_alone)
                        for i in range(N)])
        weights_alone = np.mean(weights_alone + own, axis=0)
    for other in (avg, cdd, weights_alone):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)
    np.testing.assert_allclose([own.mean(axis=0), vs.sum(axis=0), mean_v], [v] * 3, rtol=0, atol=1e-12)
