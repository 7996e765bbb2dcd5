"""Three steps of every rule against the same formula in plain Python floats."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.config import load_config
from alexnet.nn import Parameter
from alexnet.training.update_settings import has_linear_rule
from alexnet.training.updates import find_update_rule, momentum_sgd, nesterov, sgd

MOMENTUM, DECAY, RATES = 0.9, 0.01, (0.1, 0.1, 0.05)


def plain(w, v, g, rate, rule):
    """Compute one step on Python floats; return the new w and v."""
    if rule == "sgd":
        return w - rate * g, v
    if rule == "momentum":
        v = MOMENTUM * v - rate * g
    else:
        v = MOMENTUM**2 * v - (1 + MOMENTUM) * rate * g
    return w + v, v


@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov"])
def test_three_steps_equal_plain_python(rule):
    weights = Parameter(np.array([0.5, -2.0]), "W")
    bias = Parameter(np.array([0.25]), "b", lr_mult=2.0, decay_mult=0.0)
    gradients = [3 * weights.variable, bias.variable + 1]       # of a synthetic cost
    rate = pt.scalar("rate", dtype="float32")
    rules = {"sgd": sgd, "momentum": momentum_sgd, "nesterov": nesterov}
    settings = {"weight_decay": DECAY} | ({} if rule == "sgd" else {"momentum": MOMENTUM})
    pairs, velocities = rules[rule]([weights, bias], gradients, rate, **settings)
    step = pytensor.function([rate], [], updates=pairs, mode="FAST_COMPILE")

    state = [(0.5, 0.0), (-2.0, 0.0), (0.25, 0.0)]
    for value in RATES:
        step(value)
        state = [
            plain(w, v, 3 * w + DECAY * w, value, rule) if i < 2 else plain(w, v, w + 1, 2 * value, rule)
            for i, (w, v) in enumerate(state)
        ]
    np.testing.assert_allclose(weights.variable.get_value(), [w for w, _ in state[:2]], rtol=1e-6)
    np.testing.assert_allclose(bias.variable.get_value(), [state[2][0]], rtol=1e-6)
    if rule != "sgd":
        np.testing.assert_allclose(velocities[0].get_value(), [v for _, v in state[:2]], rtol=1e-6)
        assert [velocity.name for velocity in velocities] == ["W.velocity", "b.velocity"]


def test_float32_parameters_stay_float32():
    parameter = Parameter(np.ones(3), "W")
    for rule in (sgd, momentum_sgd, nesterov):
        pairs, _ = rule([parameter], [parameter.variable], pt.scalar(dtype="float32"))
        assert {value.type.dtype for _, value in pairs} == {"float32"}


@pytest.mark.parametrize("settings", [
    ["use_momentum=false"], [], ["use_nesterov_momentum=true"], ["update=sgd", "use_momentum=false"],
    ["update=adagrad"], ["update=adadelta"], ["update=lars"],
])
def test_linear_rules_are_known_without_their_functions(settings):
    config = load_config(settings)
    assert has_linear_rule(config) == find_update_rule(config).linear
