"""Dropout: the mask is the same function of (seed, stream, step, element) on every backend."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad

from alexnet.backends import mode_of
from alexnet.ops import InvertedDropout

pytestmark = pytest.mark.compatibility

SHAPE = (500, 128)
SIGMA = 0.5 / np.sqrt(np.prod(SHAPE))                          # standard deviation of the kept fraction at rate 0.5


@pytest.fixture(scope="module")
def mask_of():
    """Return a function (seed, stream, step) -> the NumPy backend's mask of SHAPE at rate 0.5."""
    x, seed, step = pt.matrix("x"), pt.lscalar("seed"), pt.lscalar("step")
    outputs = [InvertedDropout(0.5, stream)(x, seed, step) for stream in (0, 1)]
    run = pytensor.function([x, seed, step], outputs, mode=mode_of("numpy"))
    return lambda seed, stream, step: run(np.ones(SHAPE, "float32"), seed, step)[stream] > 0


def test_mask_and_gradient_match_the_reference(mode, mask_of, rng):
    x, g, seed, step = pt.matrix("x"), pt.matrix("g"), pt.lscalar("seed"), pt.lscalar("step")
    y = InvertedDropout(0.5, stream=1)(x, seed, step)
    run = pytensor.function([x, g, seed, step], [y, pytensor.grad((y * g).sum(), x)], mode=mode)
    images, cotangent = rng.normal(size=(2, *SHAPE)).astype("float32")
    for counters in ((7, 3), (2**62 + 11, 2**40 + 5)):
        kept = mask_of(counters[0], 1, counters[1])
        for result, array in zip(run(images, cotangent, *counters), (images, cotangent), strict=True):
            np.testing.assert_array_equal(result, np.where(kept, 2 * array, 0))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_kept_fraction_and_mean(mode, rate):
    y = pytensor.function([], InvertedDropout(rate)(np.ones(SHAPE, "float32"), 3, 4), mode=mode)()
    share = (y > 0).mean()
    assert abs(share - (1 - rate)) <= 5 * np.sqrt(rate * (1 - rate) / y.size)
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=1e-6)


def test_masks_of_different_counters_are_uncorrelated(mask_of):
    counters = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (0, 0, 2**32)]
    masks = [mask_of(*numbers) for numbers in counters]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert abs((mask == other).mean() - 0.5) < 5 * SIGMA


def test_neighbouring_elements_are_independent(mask_of):
    mask = mask_of(0, 0, 0).ravel()
    for distance in (1, 2, 3, 4, 8, 64, 128, 256, 4096):
        assert abs((mask[distance:] == mask[:-distance]).mean() - 0.5) < 6 * SIGMA


def test_nan_is_dropped_or_kept(mode, mask_of):
    y = pytensor.function([], InvertedDropout(0.5)(np.full(SHAPE, np.nan, "float32"), 0, 0), mode=mode)()
    np.testing.assert_array_equal(np.isnan(y), mask_of(0, 0, 0))


def test_gradient_matches_finite_differences(rng):
    verify_grad(lambda x: InvertedDropout(0.4, 2)(x, 5, 6), [rng.normal(size=(6, 7))], rng=rng, mode=mode_of("numpy"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: InvertedDropout(1.0), ValueError, "at least 0 and below 1, got 1.0"),
        (lambda: InvertedDropout(-0.1), ValueError, "at least 0 and below 1, got -0.1"),
        (lambda: InvertedDropout(0.5, stream=-1), ValueError, "stream must be at least 0, got -1"),
        (lambda: InvertedDropout()(np.zeros(3, "int32"), 0, 0), TypeError, "x must be float32 or float64, got int32"),
        (lambda: InvertedDropout()(np.zeros(3, "float32"), 0.5, 0), TypeError, "seed must be int64, got float"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(make, error, message):
    with pytest.raises(error, match=message):
        make()
