"""Overlap of the exchange with the backward pass: the same bits as without it."""

import numpy as np
import pytest

from alexnet.training.factors import size_of
from multigpu.communicator import PeerDied
from tests.multigpu.exchange import workers
from tests.multigpu.exchange.workers import NormalisedNetwork, SmallNetwork, Team

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(scope="module")
def team():
    team = Team(3)
    yield team
    team.close()


def train(team, size, backend="cpu", kind=SmallNetwork, **changes):
    changes = {"exchange_what": "gradients", **changes}
    return team.run(workers.train, ["cpu"] * size, STEPS, changes, 1, None, backend, kind, size=size)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", [SmallNetwork, NormalisedNetwork])
@pytest.mark.parametrize("sync", ["avg", "cdd"])
def test_overlapped_exchange_is_bit_identical(team, size, kind, sync):
    plain, overlapped = (train(team, size, kind=kind, sync=sync, overlap=value) for value in ("false", "true"))
    for one, other in zip(plain, overlapped, strict=True):
        assert one.digests == other.digests
        assert one.costs == other.costs
    assert sum(plain[0].sent.values()) < sum(overlapped[0].sent.values())        # Ready is sent twice


def test_overlapped_exchange_of_jax_is_bit_identical(team):
    plain, overlapped = (train(team, 2, "jax", overlap=value) for value in ("false", "true"))
    assert plain[0].digests == overlapped[0].digests == overlapped[1].digests


def test_stop_request_ends_all_workers_after_one_step(team):
    changes = {"exchange_what": "gradients"}
    found = team.run(workers.train, ["cpu"] * 3, STEPS, changes, 1, {1: 3}, size=3)
    assert [len(each.costs) for each in found] == [3, 3, 3]
    assert found[0].digests[-1] == found[1].digests[-1] == found[2].digests[-1]


# ---- factors


def assert_close(state, expected, tolerance):
    for name, array in expected.items():
        scale = max(float(np.abs(array).max()), 1e-3)
        np.testing.assert_allclose(state[name] / scale, array / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("sync", ["avg", "cdd"])
def test_factors_give_the_weights_of_gradients(team, size, overlap, sync):
    changes = {"sync": sync, "exchange_what": "gradients"}
    gradients = team.run(workers.train, ["cpu"] * size, 20, changes, size=size)
    changes |= {"exchange_what": "factors", "overlap": overlap}
    factors = team.run(workers.train, ["cpu"] * size, 20, changes, size=size)
    assert_close(factors[0].states[0], gradients[0].states[0], 1e-6)
    assert_close(factors[0].states[-1], gradients[0].states[-1], 1e-5)
    for other in factors[1:]:
        assert other.digests == factors[0].digests
        assert other.costs == factors[0].costs


def test_factors_of_jax_give_the_weights_of_gradients(team):
    gradients, factors = (train(team, 2, "jax", exchange_what=what) for what in ("gradients", "factors"))
    assert_close(factors[0].states[0], gradients[0].states[0], 1e-6)
    assert_close(factors[0].states[-1], gradients[0].states[-1], 1e-5)
    assert factors[0].digests == factors[1].digests


@pytest.mark.parametrize(("batch", "size", "expected"), [
    (2, 2, {2: 384, 4: 262}), (8, 2, {2: 1536}), (8, 10, {2: 7680}), (8, 11, {}),
])
def test_layers_are_factored_where_that_is_less(batch, size, expected):
    network = workers.make_network()
    network.use_factors(batch, size)
    assert network.factored == expected


def test_alexnets_dense_layers_are_factored_up_to_44_workers():
    shapes = (9216, 4096), (4096, 4096), (4096, 1000)
    largest = [max(n for n in range(1, 99) if size_of(shape, 128, n) < np.prod(shape)) for shape in shapes]
    assert largest == [44, 31, 12]


@pytest.mark.parametrize("message", range(6, 13))
def test_death_during_overlap_is_reported(message):
    team = Team(3)
    try:
        results = team.run(workers.die_training, message)
        assert results[1] is None
        assert all(isinstance(result, PeerDied) for result in (results[0], results[2]))
    finally:
        team.close()


def test_nan_of_one_worker_reaches_no_other(team):
    """The worker whose cost is not finite exchanges nothing; the loop raises Diverged before after_step."""
    results = Team(2)
    try:
        found = results.run(workers.diverge, size=2)
        assert isinstance(found[0], PeerDied)
        assert np.isnan(found[1])
    finally:
        results.close()
