"""Server updates: the papers' formulas in float64, bit-identical results of C and NumPy, and staleness."""

import numpy as np
import pytest

from alexnet.native import compiler
from multigpu.exchange.flat_buffer import BLOCK
from multigpu.rules.parameter_server import updates
from multigpu.rules.parameter_server.updates import adadelta, adagrad, by_staleness, delayed_nesterov, nesterov, plain

EPSILON, RHO = 1e-6, 0.95
MOMENTUM, PERIOD, ACTIVATION = 0.9, 2, 0.3
LENGTHS = [1, 7, BLOCK, 2 * BLOCK + 3]
# (function, its arguments after the arrays and the scale, number of accumulators)
UPDATES = {
    "plain": (plain, (), 0),
    "adagrad": (adagrad, (EPSILON,), 1),
    "adadelta": (adadelta, (RHO, EPSILON), 2),
    "nesterov": (nesterov, (MOMENTUM,), 1),
    "delayed_nesterov": (delayed_nesterov, (MOMENTUM, PERIOD, ACTIVATION), 2),
}
SIGNED = ("nesterov", "delayed_nesterov")        # whose accumulators are sums of values of both signs
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


def is_last(number, period):
    """Return whether the push with this number, counted from 1, is the last of a period."""
    return number % period == 0


def truth(name, push, arrays, scale, number):
    """Return the new center variable and accumulators in float64, from float64 values.

    The two Nesterov updates are those of Liu et al. 2024 for the gradient -push, with the learning rate outside.
    """
    center, *kept = arrays
    if name == "plain":
        return [center + scale * push]
    if name == "nesterov":
        m, g = -kept[0] / scale, -push
        return [center - scale * (MOMENTUM**2 * m + (1 + MOMENTUM) * g), -scale * (MOMENTUM * m + g)]
    if name == "delayed_nesterov":
        m, sum_of_g, g = -kept[0] / scale, -kept[1] * PERIOD / scale - push, -push
        share = ACTIVATION
        if is_last(number, PERIOD):
            m, sum_of_g, share = MOMENTUM * m + sum_of_g / PERIOD, 0 * g, 1 - ACTIVATION * PERIOD + ACTIVATION
        step = share * MOMENTUM * m + g / PERIOD
        return [center - scale * step, -scale * m, -scale / PERIOD * sum_of_g]
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
    for number, push in enumerate(pushes, 1):
        last = (is_last(number, PERIOD),) if update is delayed_nesterov else ()
        update(push := push.copy(), *arrays, scale, *numbers, *last, back=back)
    return arrays, push


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", UPDATES)
def test_updates_match_the_formulas(way, name, length, dtype):
    pushes = made_pushes(5, length, dtype)
    expected = [np.float64(array) for array in applied(name, np.zeros_like(pushes[:1]))[0]]
    for number, push in enumerate(np.float64(pushes), 1):
        expected = truth(name, push, expected, 0.3, number)
    found, last = applied(name, pushes)
    tolerance = {"float32": 2e-6, "float64": 1e-14}[dtype]
    largest = np.abs(pushes).max(axis=0)
    unit = np.where(largest, largest, 1) if name in SIGNED else 1
    for number, (array, values) in enumerate(zip(found, expected, strict=True)):
        assert array.dtype == dtype
        # a weight is a sum and can be close to 0, so it gets an absolute tolerance; sums of squares do not
        unit_here, absolute = (unit, name in SIGNED) if number else (1, True)
        np.testing.assert_allclose(
            array / unit_here, values / unit_here, rtol=tolerance, atol=tolerance if absolute else 0
        )
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


# ---- Nesterov momentum


def pushed(update, pushes, accumulators, *numbers, period=None, start=0.0):
    """Return the center variable after each push, of one value each, from `start`."""
    center, *kept = ([np.full(1, value, "float32") for value in (start, *[0.0] * accumulators)])
    found = []
    for number, push in enumerate(pushes, 1):
        last = () if period is None else (is_last(number, period),)
        update(np.full(1, push, "float32"), center, *kept, *numbers, *last)
        found.append(float(center[0]))
    return found


def test_nesterov_matches_hand_computation(way):
    """c = beta = 1/2, D = 1, W = 1:  m = 0.5, 0.75;  W = 1 + 0.25 + 0.5, 1.75 + 0.375 + 0.5."""
    assert pushed(nesterov, [1, 1], 1, 0.5, 0.5, start=1.0) == [1.75, 2.625]


def test_four_equal_pushes_move_as_far_as_in_the_paper(way):
    """Liu et al. 2024, equation 5, with m = 0 and beta = 1/2: 4 + 4 beta + 3 beta^2 + 2 beta^3 + beta^4 = 7.0625."""
    assert pushed(nesterov, [1, 1, 1, 1], 1, 1.0, 0.5)[-1] == 7.0625


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(0.0, [0.5, 1.5, 2.0, 3.25]),               # d = 0.5, m = 1 and 1.5: 0.5, + 0.5 + 0.5, + 0.5, + 0.75 + 0.5
     (0.5, [0.5, 1.25, 2.0, 2.875])],            # + 0.25 m on each push, m = 0, 1, 1, 1.5
)
def test_delayed_nesterov_matches_hand_computation(way, activation, expected):
    assert pushed(delayed_nesterov, [1] * 4, 2, 1.0, 0.5, 2, activation, period=2) == expected


def test_delayed_nesterov_averages_the_pushes_of_a_period(way):
    """Without activation, N pushes equal one push of their mean with Nesterov momentum."""
    pushes = made_pushes(12, 50, "float64")
    center, velocity, buffer = np.zeros((3, 50))
    for number, push in enumerate(pushes, 1):
        delayed_nesterov(push.copy(), center, velocity, buffer, 0.7, 0.9, 4, 0.0, is_last(number, 4))
    other, other_velocity = np.zeros((2, 50))
    for mean in pushes.reshape(3, 4, 50).mean(axis=1):
        nesterov(mean, other, other_velocity, 0.7, 0.9)
    np.testing.assert_allclose(center, other, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(velocity, other_velocity, rtol=1e-12, atol=1e-14)
    assert not buffer.any()


@pytest.mark.parametrize(("name", "period"), [("nesterov", 1), ("delayed_nesterov", 1), ("delayed_nesterov", 4)])
def test_update_without_momentum_is_plain(way, name, period):
    pushes = made_pushes(9, 100)
    arrays = np.ones((3, 100), "float32")
    arrays[1:] = 0
    center = np.ones(100, "float32")
    for number, push in enumerate(pushes, 1):
        plain(push.copy(), center, 0.3 / period)
        if name == "nesterov":
            nesterov(push, *arrays[:2], 0.3, 0.0)
        else:
            delayed_nesterov(push, *arrays, 0.3, 0.0, period, 0.2, is_last(number, period))
        np.testing.assert_array_equal(arrays[0], center)


def test_delayed_nesterov_with_period_1_is_nesterov(way):
    arrays, others = np.zeros((3, 100), "float32"), np.zeros((2, 100), "float32")
    for push in made_pushes(9, 100):
        nesterov(push.copy(), *others, 0.3, MOMENTUM)
        delayed_nesterov(push, *arrays, 0.3, MOMENTUM, 1, 0.4, True)
        np.testing.assert_array_equal(arrays[:2], others)


# ---- refusals, and scaling by staleness


def test_arrays_of_different_lengths_are_refused(way):
    with pytest.raises(ValueError, match=r"needs arrays of equal length, got \[\(3,\), \(4,\)\]"):
        plain(np.zeros(3, "float32"), np.zeros(4, "float32"), 1)


def test_stale_push_is_scaled_down():
    assert [by_staleness(0.5, staleness, 0) for staleness in (0, 3)] == [0.5, 0.5]
    assert [by_staleness(0.5, staleness, 1) for staleness in (0, 1, 3)] == [0.5, 0.25, 0.125]
    assert by_staleness(0.5, 3, 0.5) == 0.25
