"""What a server makes of pushes: the papers' formulas in float64, in C and NumPy to the same bits, and staleness."""

import numpy as np
import pytest

from alexnet.dispatch.cpu import build
from multigpu.exchange.flat import BLOCK
from multigpu.rules import server_updates
from multigpu.rules.server_updates import adadelta, adagrad, by_staleness, plain

EPSILON, RHO = 1e-6, 0.95
LENGTHS = [1, 7, BLOCK, 2 * BLOCK + 3]
# the function, its arguments after the arrays but for the scale, how many accumulators it has
UPDATES = {"plain": (plain, (), 0), "adagrad": (adagrad, (EPSILON,), 1), "adadelta": (adadelta, (RHO, EPSILON), 2)}
needs_compiler = pytest.mark.skipif(not build.compiler_available(), reason="needs a C compiler")


@pytest.fixture(params=[pytest.param("C", marks=needs_compiler), "NumPy"])
def way(request, monkeypatch):
    """How the updates are computed."""
    choose(request.param, monkeypatch)
    return request.param


def choose(way, monkeypatch):
    """Without this the C functions might silently be none."""
    if way == "C":
        assert server_updates.library().keys() == UPDATES.keys()
    else:
        monkeypatch.setattr(server_updates, "library", dict)


def truth(name, push, arrays, scale):
    """The new centre and accumulators in float64, from float64 ones."""
    centre, *kept = arrays
    if name == "plain":
        return [centre + scale * push]
    if name == "adagrad":
        squares = kept[0] + push**2
        return [centre + scale * push / (np.sqrt(squares) + EPSILON), squares]
    squares = RHO * kept[0] + (1 - RHO) * push**2
    step = np.sqrt(kept[1] + EPSILON) / np.sqrt(squares + EPSILON) * push
    return [centre + scale * step, squares, RHO * kept[1] + (1 - RHO) * step**2]


def made_pushes(count, length, dtype="float32"):
    """Of different sizes, with zeros in them."""
    rng = np.random.default_rng(length)
    pushes = rng.normal(size=(count, length)) * 10.0 ** rng.integers(-6, 1, length)
    return (pushes * (rng.random((count, length)) < 0.9)).astype(dtype)


def applied(name, pushes, scale=0.3, back=True):
    """(the centre and the accumulators, what became of the last push) after all of the pushes."""
    update, numbers, accumulators = UPDATES[name]
    arrays = [np.zeros_like(pushes[0]) for _ in range(1 + accumulators)]
    arrays[0][:] = np.random.default_rng(1).normal(size=pushes[0].size)
    for push in pushes:
        update(push := push.copy(), *arrays, scale, *numbers, back=back)
    return arrays, push


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", UPDATES)
def test_updates_are_the_formulas(way, name, length, dtype):
    pushes = made_pushes(5, length, dtype)
    expected = [np.float64(array) for array in applied(name, np.zeros_like(pushes[:1]))[0]]
    for push in np.float64(pushes):
        expected = truth(name, push, expected, 0.3)
    found, last = applied(name, pushes)
    tolerance = {"float32": 2e-6, "float64": 1e-14}[dtype]
    for number, (array, values) in enumerate(zip(found, expected, strict=True)):
        assert array.dtype == dtype
        # the sum that a weight is may come near 0; of what is kept every number counts
        np.testing.assert_allclose(array, values, rtol=tolerance, atol=0 if number else tolerance)
    np.testing.assert_array_equal(last, found[0])                # what goes back is the centre


@needs_compiler
@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", UPDATES)
def test_c_and_numpy_make_the_same_bits(name, length, back, monkeypatch):
    found = []
    for way in ("C", "NumPy"):
        with monkeypatch.context() as patch:
            choose(way, patch)
            found.append(applied(name, made_pushes(5, length), back=back)[0])
    for array, other in zip(*found, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("scale", [1, 1 / 3])
def test_plain_rounds_the_product_and_the_sum(way, scale):
    """As NumPy does it at once; with scale 1 that is the sum."""
    rng = np.random.default_rng(0)
    push, centre = rng.normal(size=(2, 1000)).astype("float32")
    expected = centre + np.float32(scale) * push
    once = np.float32(np.float64(centre) + np.float64(np.float32(scale)) * np.float64(push))
    assert np.array_equal(expected, once) == (scale == 1)        # so a fused multiplication and addition would show
    plain(push, centre, scale)
    np.testing.assert_array_equal(centre, expected)
    np.testing.assert_array_equal(push, expected)


@pytest.mark.parametrize("name", UPDATES)
def test_where_nothing_goes_back_the_centre_is_the_same_and_not_copied(way, name):
    pushes = made_pushes(3, 100)
    (fetched, _), (kept, last) = (applied(name, pushes, back=back) for back in (True, False))
    for array, other in zip(fetched, kept, strict=True):
        np.testing.assert_array_equal(array, other)
    assert not np.array_equal(last, kept[0])


@pytest.mark.parametrize("name", UPDATES)
def test_a_weight_that_nobody_changed_stays_as_it_is(way, name):
    (centre, *kept), _ = applied(name, np.zeros((3, 10), "float32"))
    np.testing.assert_array_equal(centre, np.random.default_rng(1).normal(size=10).astype("float32"))
    assert not any(array.any() for array in kept)


def test_arrays_of_other_lengths_are_refused(way):
    with pytest.raises(ValueError, match=r"needs arrays alike in length, got \[\(3,\), \(4,\)\]"):
        plain(np.zeros(3, "float32"), np.zeros(4, "float32"), 1)


def test_a_stale_push_counts_less():
    assert [by_staleness(0.5, staleness, 0) for staleness in (0, 3)] == [0.5, 0.5]
    assert [by_staleness(0.5, staleness, 1) for staleness in (0, 1, 3)] == [0.5, 0.25, 0.125]
    assert by_staleness(0.5, 3, 0.5) == 0.25
