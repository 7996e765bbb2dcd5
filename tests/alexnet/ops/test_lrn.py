"""Local response normalisation against the paper's formula, PyTorch and finite differences."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import NullTypeGradError, verify_grad

from alexnet.backends import mode_of
from alexnet.ops import LocalResponseNorm, LRNGradient
from tests import reference

pytestmark = pytest.mark.compatibility


@pytest.mark.parametrize("n", [1, 3, 5, 31])                   # 31: wider than the input
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_lrn_and_gradient_match_paper_formula(mode, n, beta, rng):
    constants = {"n": n, "k": 2.0, "alpha": 0.5, "beta": beta}
    images, cotangent = rng.normal(size=(2, 7, 3, 4, 23)).astype("float32") * 2
    x, g = pt.tensor4("x"), pt.tensor4("g")
    y = LocalResponseNorm(**constants)(x)
    run = pytensor.function([x, g], [y, pytensor.grad((y * g).sum(), x)], mode=mode)
    y, dx = run(images, cotangent)
    np.testing.assert_allclose(y, reference.lrn(images, **constants), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dx, reference.lrn_gradient(images, cotangent, **constants), rtol=1e-4, atol=1e-6)


def test_many_pixels_match_the_formula(mode, rng):
    images = rng.normal(size=(3, 5, 9, 41)).astype("float32")                     # 1845 pixels
    y = pytensor.function([], LocalResponseNorm(alpha=0.5)(images), mode=mode)()
    np.testing.assert_allclose(y, reference.lrn(images, 5, 2.0, 0.5, 0.75), rtol=1e-5)


def test_nan_stays_in_its_window(mode):
    images = np.ones((7, 1, 1, 2), "float32")
    images[1, 0, 0, 0] = np.nan
    y = pytensor.function([], LocalResponseNorm(n=3)(images), mode=mode)()
    assert np.isnan(y[:, 0, 0, 0]).tolist() == [True, True, True, False, False, False, False]
    assert not np.isnan(y[..., 1]).any()


def test_alpha_is_not_divided_by_n(mode, rng):
    torch = pytest.importorskip("torch")
    images = rng.normal(size=(7, 3, 2, 4)).astype("float32") * 3
    theirs = torch.nn.LocalResponseNorm(5, alpha=0.5 * 5, beta=0.75, k=2.0)(torch.tensor(images.transpose(3, 0, 1, 2)))
    y = pytensor.function([], LocalResponseNorm(alpha=0.5)(images), mode=mode)()
    np.testing.assert_allclose(y, theirs.numpy().transpose(1, 2, 3, 0), rtol=1e-5)


def test_gradient_matches_finite_differences(rng):
    verify_grad(LocalResponseNorm(3, alpha=0.5), [rng.normal(size=(5, 2, 1, 2))], rng=rng, mode=mode_of("numpy"))


def test_second_derivatives_are_refused():
    x = pt.tensor4("x")
    with pytest.raises(NullTypeGradError, match="second derivatives of LRN"):
        pytensor.grad(pytensor.grad((LocalResponseNorm()(x) ** 2).sum(), x).sum(), x)


def test_gradient_of_wrong_shape_is_refused(mode):
    """The kernel would read beyond the end of the smaller array."""
    x, g = pt.tensor4("x"), pt.tensor4("g")
    run = pytensor.function([x, g], LRNGradient()(x, g), mode=mode)
    with pytest.raises(ValueError, match=r"g must have the shape of x, \(7, 3, 2, 4\), got \(7, 3, 2, 1\)"):
        run(np.ones((7, 3, 2, 4), "float32"), np.ones((7, 3, 2, 1), "float32"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LocalResponseNorm(n=4), ValueError, "positive odd number, got 4"),
        (lambda: LocalResponseNorm(n=-1), ValueError, "n must be at least 1, got -1"),
        (lambda: LocalResponseNorm(n=2.5), TypeError, "must be an integer, got 2.5"),
        (lambda: LocalResponseNorm(k=0), ValueError, "k must be positive.* got 0"),
        (lambda: LocalResponseNorm(alpha=-1), ValueError, "alpha must not be negative, got -1"),
        (lambda: LocalResponseNorm()(np.zeros((2, 2), "float32")), TypeError, "x must have 4 axes, got 2"),
        (lambda: LocalResponseNorm()(np.zeros((1, 1, 1, 1), "int64")), TypeError, "float32 or float64, got int64"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(make, error, message):
    with pytest.raises(error, match=message):
        make()
