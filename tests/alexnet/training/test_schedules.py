"""Learning rate schedules against tables of epoch and rate."""

from types import SimpleNamespace

import numpy as np
import pytest

from alexnet.training.schedules import auto, cosine, learning_rate, linear, poly, step, warm_up


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1), (19.99, 1), (20, 0.1), (39, 0.1), (40, 0.01), (64, 0.01)])
def test_step_divides_by_ten_at_epochs_20_and_40(epoch, factor):
    assert step(epoch, [20, 40]) == pytest.approx(factor)


def test_auto_drops_once_when_the_error_stalls():
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35]
    assert auto(falling) == 1
    assert auto([*falling, 0.348]) == 1                     # fell by 0.052 over two epochs
    assert auto([*falling, 0.348, 0.347]) == pytest.approx(0.1)
    assert auto([*falling, 0.348, 0.347, 0.346]) == pytest.approx(0.1)          # no immediate second drop
    assert auto([*falling, 0.348, 0.347, 0.346, 0.345]) == pytest.approx(0.01)


def test_auto_never_drops_in_the_first_epochs():
    assert auto([0.9] * 6) == 1
    assert auto([0.9] * 7) == pytest.approx(0.1)


def test_warm_up_is_linear():
    assert [warm_up(e, 5) for e in (0, 2.5, 5, 9)] == pytest.approx([0.1, 0.55, 1, 1])
    assert warm_up(0, 0) == 1


def test_learning_rate_multiplies_policy_and_warm_up():
    settings = {"learning_rate": 0.01, "lr_scaling": "none", "warmup_epochs": 4}
    settings |= {"lr_policy": "step", "lr_step": [2], "lr_factor": 0.1}
    assert learning_rate(SimpleNamespace(**settings), 2, []) == pytest.approx(0.01 * 0.55 * 0.1)
    settings |= {"lr_policy": "constant"}
    assert learning_rate(SimpleNamespace(**settings), 8, []) == pytest.approx(0.01)
    settings |= {"lr_policy": "auto", "lr_adapt_threshold": 0.01}
    assert learning_rate(SimpleNamespace(**settings), 8, [0.9] * 7) == pytest.approx(0.001)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_poly_matches_caffe_in_each_iteration(power):
    """rate * (1 - iter / max_iter) ** power, with 7 iterations per epoch; 0 after the last."""
    settings = SimpleNamespace(
        learning_rate=0.01, warmup_epochs=0, lr_policy="poly", lr_power=power, n_epochs=3, lr_scaling="none"
    )
    rates = [learning_rate(settings, iteration / 7, []) for iteration in range(21)]
    assert rates == pytest.approx([0.01 * (1 - iteration / 21) ** power for iteration in range(21)])
    assert poly(3, 3, power) == poly(4, 3, power) == 0


@pytest.mark.parametrize("policy", ["linear", "cosine"])
def test_linear_and_cosine_match_float64_formulas(policy):
    """The formula at each of 7 iterations per epoch, times a warm-up of 2 of 5 epochs by 4 workers."""
    settings = SimpleNamespace(
        learning_rate=0.01, warmup_epochs=2, lr_policy=policy, n_epochs=5, lr_scaling="linear"
    )
    epochs = np.arange(35, dtype=np.float64) / 7
    factor = {"linear": 1 - epochs / 5, "cosine": 0.5 + 0.5 * np.cos(np.pi * epochs / 5)}[policy]
    expected = factor * np.interp(epochs, [0, 2], [0.01, 0.04])
    rates = [learning_rate(settings, epoch, [], workers=4) for epoch in epochs]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_linear_and_cosine_end_at_zero():
    """Also after the last epoch, in a run that is resumed with fewer epochs."""
    assert [linear(epoch, 3) for epoch in (0, 3, 4)] == [1, 0, 0]
    assert [cosine(epoch, 3) for epoch in (0, 3, 4)] == [1, 0, 0]


def test_linear_scaling_warms_up_from_the_rate_of_one_worker():
    """Goyal et al. 2017, section 2.2: linear from eta to k eta over 5 epochs, then by policy."""
    settings = SimpleNamespace(
        learning_rate=0.1, warmup_epochs=5, lr_policy="step", lr_step=[30], lr_factor=0.1, lr_scaling="linear"
    )
    rates = [learning_rate(settings, epoch / 2, [], workers=8) for epoch in range(11)]
    assert rates == pytest.approx([0.1 + 0.7 * half / 10 for half in range(11)])
    assert learning_rate(settings, 30, [], workers=8) == pytest.approx(0.08)
    settings.lr_scaling = "none"
    assert learning_rate(settings, 5, [], workers=8) == pytest.approx(0.1)
