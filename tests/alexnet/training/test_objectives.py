"""Cross entropy and top-k error against formulas in plain NumPy float64."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.training.objectives import cross_entropy, top_k_error


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
