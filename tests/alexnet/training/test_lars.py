"""LARS against the paper's algorithm in float64 NumPy, and in a network on each backend."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.nn import Parameter
from alexnet.training.lars import lars
from alexnet.training.network import Network
from alexnet.training.updates import bind_update_rule, find_update_rule
from tests import tiny
from tests.multigpu.exchange.workers import SmallNetwork, synthetic_batch

STEPS, TRUST, MOMENTUM, DECAY = 50, 0.02, 0.9, 0.01


def you(w, v, g, rate, decay=DECAY, adapts=True, trust=TRUST):
    """One step by algorithm 1 of You et al. 2017, with the sign of the velocity changed; return the new w and v."""
    local = 1.0
    norms = np.linalg.norm(w), np.linalg.norm(g)
    if adapts and all(norms):
        local = trust * norms[0] / (norms[1] + decay * norms[0])
    v = MOMENTUM * v - rate * local * (g + decay * w)
    return w + v, v


def rate_of(step):
    return 0.5 if step < STEPS // 2 else 0.05


def test_fifty_steps_match_the_papers_algorithm(rng):
    """Weights, weights that start at 0, and a bias; gradients of very different magnitudes, and zero in some steps."""
    starts = [rng.normal(size=(3, 4)), np.zeros(5), rng.normal(size=4)]
    gradients = [[10.0 ** rng.integers(-6, 4) * rng.normal(size=w.shape) for w in starts] for _ in range(STEPS)]
    gradients[3] = [0 * g for g in gradients[3]]
    parameters = [Parameter(w, name, dtype="float64") for w, name in zip(starts[:2], ("A", "Z"), strict=True)]
    parameters.append(Parameter(starts[2], "b", lr_mult=2.0, decay_mult=0.0, dtype="float64"))
    symbols, rate = [parameter.variable.type() for parameter in parameters], pt.dscalar()
    pairs, velocities = lars(parameters, symbols, rate, trust=TRUST, momentum=MOMENTUM, weight_decay=DECAY)
    step = pytensor.function([*symbols, rate], [], updates=pairs, mode="FAST_COMPILE")
    assert [velocity.name for velocity in velocities] == ["A.velocity", "Z.velocity", "b.velocity"]
    state = [(w, 0 * w) for w in starts]
    for n, each in enumerate(gradients):
        step(*each, rate_of(n))
        for i, g in enumerate(each):
            weights = i < 2
            state[i] = you(*state[i], g, rate_of(n) * (1 if weights else 2), DECAY if weights else 0, weights)
            np.testing.assert_allclose(parameters[i].variable.get_value(), state[i][0], rtol=1e-12, atol=1e-12)


def test_step_does_not_depend_on_the_scale_of_the_gradient(rng):
    """With weight decay 0: the purpose of the rule."""
    start, gradient, found = rng.normal(size=6), rng.normal(size=6), []
    for scale in (1e-3, 1e3):
        parameter, g, rate = Parameter(start, "W", dtype="float64"), pt.dvector(), pt.dscalar()
        pairs, _ = lars([parameter], [g], rate, trust=TRUST, momentum=0.0, weight_decay=0.0)
        pytensor.function([g, rate], [], updates=pairs, mode="FAST_COMPILE")(scale * gradient, 0.5)
        found.append(parameter.variable.get_value())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    assert np.linalg.norm(found[0] - start) == pytest.approx(0.5 * TRUST * np.linalg.norm(start), rel=1e-12)


def test_settings_select_lars():
    config = tiny.settings("none", "none", update="lars", lars_trust=0.01, momentum=0.8, weight_decay=0.25)
    rule = bind_update_rule(config)
    assert rule.func is lars and rule.keywords == {"trust": 0.01, "momentum": 0.8, "weight_decay": 0.25}
    assert not find_update_rule(config).linear


@pytest.mark.slow
def test_network_step_matches_float64(backend):
    """As one function and as compute and apply."""
    rule = partial(lars, trust=TRUST, momentum=MOMENTUM, weight_decay=DECAY)
    whole, halves = (
        Network(SmallNetwork(np.random.default_rng(0)), np.zeros((3, 6, 6), "float32"), rule, backend, crop=False)
        for _ in range(2)
    )
    before = {name: np.array(array, "float64") for name, array in whole.get_state().items()}
    batch = synthetic_batch(1, 0, 1, 1)
    whole.train(*batch, np.float32(0.5))
    halves.compute(*batch)
    gradients = [np.array(g.get_value(), "float64") for g in halves.gradients]
    halves.apply(np.float32(0.5))
    for parameter, g in zip(whole.trainable_parameters, gradients, strict=True):
        adapts, w = bool(parameter.decay_mult), before[parameter.name]
        w, v = you(w, 0 * w, g, 0.5 * parameter.lr_mult, DECAY if adapts else 0, adapts)
        for network in (whole, halves):
            found = network.get_state()
            np.testing.assert_allclose(found[parameter.name], w, rtol=1e-6, atol=1e-7, err_msg=parameter.name)
            np.testing.assert_allclose(found[f"{parameter.name}.velocity"], v, rtol=1e-4, atol=1e-7)
    for name, array in whole.get_state().items():
        np.testing.assert_array_equal(halves.get_state()[name], array, err_msg=name)
