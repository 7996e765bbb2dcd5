"""Cross entropy and top-k error against formulas in plain NumPy float64."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import equal_computations

from alexnet.training.objectives import cross_entropy, smoothed_cross_entropy, top_k_error, training_cost


@pytest.fixture(scope="module")
def functions():
    logits, labels = pt.matrix("logits", dtype="float32"), pt.ivector("labels")
    outputs = [cross_entropy(logits, labels), top_k_error(logits, labels, 1), top_k_error(logits, labels, 5)]
    gradient = pytensor.grad(outputs[0], logits)
    return pytensor.function([logits, labels], [*outputs, gradient], mode="FAST_COMPILE")


def softmax(logits):
    exponentials = np.exp(logits.astype("float64") - logits.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


def test_cost_and_gradient_match_the_formula(functions, rng):
    logits, labels = rng.normal(size=(11, 6)).astype("float32"), rng.integers(0, 11, 6).astype("int32")
    cost, *_, gradient = functions(logits, labels)
    probability = softmax(logits)
    assert cost == pytest.approx(-np.log(probability[labels, range(6)]).mean(), rel=1e-6)
    np.testing.assert_allclose(gradient, (probability - np.eye(11)[:, labels]) / 6, atol=1e-7)


def smoothed_truth(logits, labels, smoothing):
    """Return cost and gradient by equations of Szegedy et al. 2016, section 7, in float64."""
    classes, batch = logits.shape
    q = (1 - smoothing) * np.eye(classes)[:, labels] + smoothing / classes
    probability = softmax(logits)
    return -(q * np.log(probability)).sum() / batch, (probability - q) / batch


def smoothed_function(dtype, smoothing, mode):
    logits, labels = pt.matrix("logits", dtype=dtype), pt.ivector("labels")
    cost = smoothed_cross_entropy(logits, labels, smoothing)
    return pytensor.function([logits, labels], [cost, pytensor.grad(cost, logits)], mode=mode)


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_smoothed_cost_and_gradient_match_float64(smoothing, rng):
    logits, labels = 5 * rng.normal(size=(11, 6)), rng.integers(0, 11, 6).astype("int32")
    cost, gradient = smoothed_function("float64", smoothing, "FAST_COMPILE")(logits, labels)
    expected, expected_gradient = smoothed_truth(logits, labels, smoothing)
    assert cost == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-12, rtol=0)


def test_smoothed_cost_and_gradient_match_on_backends(mode, rng):
    logits, labels = 5 * rng.normal(size=(11, 6)).astype("float32"), rng.integers(0, 11, 6).astype("int32")
    cost, gradient = smoothed_function("float32", 0.1, mode)(logits, labels)
    expected, expected_gradient = smoothed_truth(logits, labels, 0.1)
    assert float(cost) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7, rtol=0)


def test_auxiliary_costs_are_smoothed_and_weighted(rng):
    main, other, labels = pt.dmatrix("main"), pt.dmatrix("other"), pt.ivector("labels")
    run = pytensor.function(
        [main, other, labels], training_cost(main, [(0.3, other)], labels, 0.1), mode="FAST_COMPILE"
    )
    values, own = rng.normal(size=(2, 5, 4)), np.array([0, 4, 2, 2], "int32")
    costs = [smoothed_truth(logits, own, 0.1)[0] for logits in values]
    assert run(*values, own) == pytest.approx(costs[0] + 0.3 * costs[1], rel=1e-12)


def test_without_smoothing_the_graph_is_unchanged():
    logits, labels = pt.matrix("logits", dtype="float32"), pt.ivector("labels")
    assert equal_computations([training_cost(logits, [], labels)], [cross_entropy(logits, labels)])


def test_cost_of_huge_equal_logits_is_ln_classes(functions):
    for value in (0, 1e4, -1e4):
        cost, *_ = functions(np.full((10, 3), value, "float32"), np.arange(3, dtype="int32"))
        assert cost == pytest.approx(np.log(10), rel=1e-6)


def test_errors_match_a_count_by_sorting(functions, rng):
    logits, labels = rng.normal(size=(11, 200)).astype("float32"), rng.integers(0, 11, 200).astype("int32")
    _, top1, top5, _ = functions(logits, labels)
    best = np.argsort(-logits, axis=0, kind="stable")
    assert top1 == pytest.approx(np.mean(best[0] != labels))
    assert top5 == pytest.approx(np.mean((best[:5] != labels).all(axis=0)))


def test_ties_rank_the_lowest_classes_first(functions):
    _, top1, top5, _ = functions(np.zeros((10, 10), "float32"), np.arange(10, dtype="int32"))
    assert (top1, top5) == (pytest.approx(0.9), pytest.approx(0.5))


def test_nan_outputs_count_as_errors(functions):
    cost, top1, top5, _ = functions(np.full((10, 4), np.nan, "float32"), np.arange(4, dtype="int32"))
    assert np.isnan(cost) and top1 == 1
    assert top5 == 1
