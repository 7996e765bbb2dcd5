"""Batch normalisation against the formula in float64, PyTorch and finite differences."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import NullTypeGradError, verify_grad

from alexnet.backends import mode_of
from alexnet.native import compiler
from alexnet.ops import BatchNorm2D, batch_norm
from tests import reference

pytestmark = pytest.mark.compatibility


def arrays(rng, shape=(5, 3, 4, 23), dtype="float32"):
    """Return x, g, gamma, beta, with means far from 0."""
    x, g = rng.normal(size=(2, *shape))
    gamma, beta = rng.normal(size=(2, shape[0]))
    return [each.astype(dtype) for each in (3 * x + 2, g, gamma, beta)]


def function(mode, relu, dtype="float32", epsilon=1e-3):
    """Return a function of x, g, gamma and beta: outputs and gradients."""
    x, g = pt.tensor4("x", dtype=dtype), pt.tensor4("g", dtype=dtype)
    gamma, beta = pt.vector("gamma", dtype=dtype), pt.vector("beta", dtype=dtype)
    y, mean, variance = BatchNorm2D(epsilon, relu)(x, gamma, beta)
    gradients = pytensor.grad((y * g).sum(), [x, gamma, beta])
    return pytensor.function([x, g, gamma, beta], [y, mean, variance, *gradients], mode=mode)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_and_gradients_match_the_formula(mode, relu, dtype, rng):
    x, g, gamma, beta = arrays(rng, dtype=dtype)
    results = function(mode, relu, dtype)(x, g, gamma, beta)
    expected = (*reference.batch_norm(x, gamma, beta, 1e-3, relu),
                *reference.batch_norm_gradient(x, gamma, beta, g, 1e-3, relu))
    for result, each in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, each, rtol=1e-5, atol=1e-5 * np.abs(each).max())


@pytest.mark.parametrize("shape", [(3, 1, 1, 2), (2, 1, 1, 63), (2, 7, 9, 67), (1, 40, 30, 9)])
def test_any_number_of_pixels(mode, shape, rng):
    x, g, gamma, beta = arrays(rng, shape)
    y, mean, variance, dx, *_ = function(mode, True)(x, g, gamma, beta)
    truth = reference.batch_norm(x, gamma, beta, 1e-3, True)
    for result, each in zip((y, mean, variance), truth, strict=True):
        np.testing.assert_allclose(result, each, rtol=1e-5, atol=1e-4)
    if x[0].size < 1000:
        expected = reference.batch_norm_gradient(x, gamma, beta, g, 1e-3, True)[0]
        np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_large_mean_does_not_cancel(mode, rng):
    """The variance of 1000 + N(0, 1) in float32."""
    x = (1000 + rng.normal(size=(2, 16, 16, 33))).astype("float32")
    ones, zeros = np.ones(2, "float32"), np.zeros(2, "float32")
    _, _, variance, *_ = function(mode, False)(x, np.zeros_like(x), ones, zeros)
    np.testing.assert_allclose(variance, x.astype(np.float64).var((1, 2, 3)), rtol=1e-5)


def test_nan_stays_in_its_channel(mode, rng):
    x, g, gamma, beta = arrays(rng)
    x[1, 0, 0, 0] = np.nan
    y, mean, *_ = map(np.asarray, function(mode, True)(x, g, gamma, beta))
    assert np.isnan(y[1]).all() and np.isnan(mean[1])
    assert np.isfinite(y[[0, 2, 3, 4]]).all()


def test_matches_pytorch_in_nchw(rng):
    torch = pytest.importorskip("torch")
    images, gamma, beta = rng.normal(size=(6, 3, 5, 4)), rng.normal(size=3), rng.normal(size=3)
    x, *vectors = map(torch.tensor, (images, gamma, beta))
    theirs = torch.nn.functional.batch_norm(x, None, None, *vectors, training=True)
    y, _, _ = batch_norm(images, gamma, beta)
    np.testing.assert_allclose(y.eval(mode="FAST_COMPILE"), theirs.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("relu", [False, True])
def test_gradient_matches_finite_differences(relu, rng):
    """Of all three outputs together."""
    def combined(x, gamma, beta):
        y, mean, variance = BatchNorm2D(1e-3, relu)(x, gamma, beta)
        return (y + mean.dimshuffle(0, "x", "x", "x") * variance.dimshuffle(0, "x", "x", "x")) * (1 + x)

    values = rng.normal(size=(3, 2, 2, 3)), rng.normal(size=3), rng.normal(size=3)
    verify_grad(combined, values, rng=rng, mode=mode_of("numpy"))


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
def test_threads_do_not_change_results(rng):
    values = arrays(rng, (7, 9, 11, 65))
    run = function(mode_of("cpu"), True)
    results = []
    for threads in (1, 2, 3):
        compiler.use_threads(threads)
        try:
            results.append(run(*values))
        finally:
            compiler.use_threads(None)
    for one, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_array_equal(one, other)


def test_second_derivatives_are_refused():
    x = pt.tensor4("x")
    y = BatchNorm2D()(x, np.ones(2, x.dtype), np.ones(2, x.dtype))[0]
    with pytest.raises(NullTypeGradError, match="second derivatives of batch normalisation"):
        pytensor.grad(pytensor.grad((y**3).sum(), x).sum(), x)


X = pt.tensor("x", shape=(3, 2, 2, 4), dtype="float32")
ONES = np.ones(3, "float32")


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: BatchNorm2D(0), ValueError, "needs a positive epsilon, got 0"),
    (lambda: BatchNorm2D()(X, np.ones(4, "float32"), ONES), ValueError, "gamma .* each of 3 channels, got 4"),
    (lambda: BatchNorm2D()(X, ONES, np.ones(3)), TypeError, "share one dtype, got float32, float64"),
    (lambda: BatchNorm2D()(X, X, ONES), TypeError, "gamma must have 1 axes, got 4"),
])
def test_wrong_arguments_are_refused_with_the_value(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("backend_name", ["cpu", "numpy"])
def test_wrong_shapes_are_refused_when_computed(backend_name, rng):
    if backend_name == "cpu" and not compiler.compiler_available():
        pytest.skip("needs a C compiler")
    x, g, gamma, beta = arrays(rng)
    run = function(mode_of(backend_name), False)
    with pytest.raises(ValueError, match=r"one value for each of 5 channels, got \(4,\)"):
        run(x, g, gamma[:4], beta)
    with pytest.raises(ValueError, match="a channel without values has no mean"):
        run(x[..., :0], g[..., :0], gamma, beta)
