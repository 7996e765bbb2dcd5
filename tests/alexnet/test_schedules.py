"""Schedules as tables of epoch and rate."""

from types import SimpleNamespace

import pytest

from alexnet.schedules import auto, learning_rate, step, warm_up


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1), (19.99, 1), (20, 0.1), (39, 0.1), (40, 0.01), (64, 0.01)])
def test_step_divides_by_ten_at_epochs_20_and_40(epoch, factor):
    assert step(epoch, [20, 40]) == pytest.approx(factor)


def test_auto_drops_once_when_the_error_stalls():
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35]
    assert auto(falling) == 1
    assert auto([*falling, 0.348]) == 1                     # fell by .052 over two epochs
    assert auto([*falling, 0.348, 0.347]) == pytest.approx(0.1)
    assert auto([*falling, 0.348, 0.347, 0.346]) == pytest.approx(0.1)          # not again at once
    assert auto([*falling, 0.348, 0.347, 0.346, 0.345]) == pytest.approx(0.01)


def test_auto_never_drops_in_the_first_epochs():
    assert auto([0.9] * 6) == 1
    assert auto([0.9] * 7) == pytest.approx(0.1)


def test_warm_up_is_linear_and_then_over():
    assert [warm_up(e, 5) for e in (0, 2.5, 5, 9)] == pytest.approx([0.1, 0.55, 1, 1])
    assert warm_up(0, 0) == 1


def test_learning_rate_multiplies_policy_and_warm_up():
    settings = {"learning_rate": 0.01, "warmup_epochs": 4, "lr_policy": "step", "lr_step": [2], "lr_factor": 0.1}
    assert learning_rate(SimpleNamespace(**settings), 2, []) == pytest.approx(0.01 * 0.55 * 0.1)
    settings |= {"lr_policy": "constant"}
    assert learning_rate(SimpleNamespace(**settings), 8, []) == pytest.approx(0.01)
    settings |= {"lr_policy": "auto", "lr_adapt_threshold": 0.01}
    assert learning_rate(SimpleNamespace(**settings), 8, [0.9] * 7) == pytest.approx(0.001)
