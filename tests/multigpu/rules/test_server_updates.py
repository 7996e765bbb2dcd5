"""Server updates: the papers' formulas in float64, bit-identical results of C and NumPy, and staleness."""

import numpy as np
import pytest

from alexnet.native import compiler
from multigpu.exchange.flat_buffer import BLOCK
from multigpu.rules.parameter_server import updates
from multigpu.rules.parameter_server.updates import adadelta, adagrad, by_staleness, plain

EPSILON, RHO = 1e-6, 0.95
LENGTHS = [1, 7, BLOCK, 2 * BLOCK + 3]
# (function, its arguments after the arrays and the scale, number of accumulators)
UPDATES = {"plain": (plain, (), 0), "adagrad": (adagrad, (EPSILON,), 1), "adadelta": (adadelta, (RHO, EPSILON), 2)}
needs_compiler = pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")


@pytest.fixture(params=[pytest.param("C", marks=needs_compiler), "NumPy"])
def way(request, monkeypatch):
    """The implementation that computes the updates."""
    choose(request.param, monkeypatch)
    return request.param


def choose(way, monkeypatch):
    """Select C or NumPy; assert that the C functions exist, because their absence would go unnoticed."""
    if way == "C":
        assert updates.library().keys() == UPDATES.keys()
    else:
        monkeypatch.setattr(updates, "library", dict)


def truth(name, push, arrays, scale):
    """Return the new center variable and accumulators in float64, from float64 values."""
    center, *kept = arrays
    if name == "plain":
        return [center + scale * push]
    if name == "adagrad":
        squares = kept[0] + push**2
        return [center + scale * push / (np.sqrt(squares) + EPSILON), squares]
    squares = RHO * kept[0] + (1 - RHO) * push**2
    step = np.sqrt(kept[1] + EPSILON) / np.sqrt(squares + EPSILON) * push
    return [center + scale * step, squares, RHO * kept[1] + (1 - RHO) * step**2]


def made_pushes(count, length, dtype="float32"):
    """Return random pushes of different magnitudes with some zeros."""
    rng = np.random.default_rng(length)
    pushes = rng.normal(size=(count, length)) * 10.0 ** rng.integers(-6, 1, length)
    return (pushes * (rng.random((count, length)) < 0.9)).astype(dtype)


def applied(name, pushes, scale=0.3, back=True):
    """Apply all pushes; return ([center variable, accumulators], the buffer of the last push)."""
    update, numbers, accumulators = UPDATES[name]
    arrays = [np.zeros_like(pushes[0]) for _ in range(1 + accumulators)]
    arrays[0][:] = np.random.default_rng(1).normal(size=pushes[0].size)
    for push in pushes:
        update(push := push.copy(), *arrays, scale, *numbers, back=back)
    return arrays, push


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", UPDATES)
def test_updates_match_the_formulas(way, name, length, dtype):
    pushes = made_pushes(5, length, dtype)
    expected = [np.float64(array) for array in applied(name, np.zeros_like(pushes[:1]))[0]]
    for push in np.float64(pushes):
        expected = truth(name, push, expected, 0.3)
    found, last = applied(name, pushes)
    tolerance = {"float32": 2e-6, "float64": 1e-14}[dtype]
    for number, (array, values) in enumerate(zip(found, expected, strict=True)):
        assert array.dtype == dtype
        # a weight is a sum and can be close to 0, so it gets an absolute tolerance; accumulators do not
        np.testing.assert_allclose(array, values, rtol=tolerance, atol=0 if number else tolerance)
    np.testing.assert_array_equal(last, found[0])                # the push buffer returns the center variable


@needs_compiler
@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", UPDATES)
def test_c_and_numpy_are_bit_identical(name, length, back, monkeypatch):
    found = []
    for way in ("C", "NumPy"):
        with monkeypatch.context() as patch:
            choose(way, patch)
            found.append(applied(name, made_pushes(5, length), back=back)[0])
    for array, other in zip(*found, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("scale", [1, 1 / 3])
def test_plain_update_rounds_product_and_sum(way, scale):
    """NumPy does the same; with scale 1 the result is the plain sum."""
    rng = np.random.default_rng(0)
    push, center = rng.normal(size=(2, 1000)).astype("float32")
    expected = center + np.float32(scale) * push
    once = np.float32(np.float64(center) + np.float64(np.float32(scale)) * np.float64(push))
    assert np.array_equal(expected, once) == (scale == 1)        # so a fused multiply-add would be detected
    plain(push, center, scale)
    np.testing.assert_array_equal(center, expected)
    np.testing.assert_array_equal(push, expected)


@pytest.mark.parametrize("name", UPDATES)
def test_push_without_fetch_copies_no_center(way, name):
    pushes = made_pushes(3, 100)
    (fetched, _), (kept, last) = (applied(name, pushes, back=back) for back in (True, False))
    for array, other in zip(fetched, kept, strict=True):
        np.testing.assert_array_equal(array, other)
    assert not np.array_equal(last, kept[0])


@pytest.mark.parametrize("name", UPDATES)
def test_weight_without_update_is_unchanged(way, name):
    (center, *kept), _ = applied(name, np.zeros((3, 10), "float32"))
    np.testing.assert_array_equal(center, np.random.default_rng(1).normal(size=10).astype("float32"))
    assert not any(array.any() for array in kept)


def test_arrays_of_different_lengths_are_refused(way):
    with pytest.raises(ValueError, match=r"needs arrays of equal length, got \[\(3,\), \(4,\)\]"):
        plain(np.zeros(3, "float32"), np.zeros(4, "float32"), 1)


def test_stale_push_is_scaled_down():
    assert [by_staleness(0.5, staleness, 0) for staleness in (0, 3)] == [0.5, 0.5]
    assert [by_staleness(0.5, staleness, 1) for staleness in (0, 1, 3)] == [0.5, 0.25, 0.125]
    assert by_staleness(0.5, 3, 0.5) == 0.25
