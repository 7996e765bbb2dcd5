"""Fusing a dense layer's gradient with its update: bit-identical results; no fusion if the gradient has other uses."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.backends.cpu.kernels import fused_update
from alexnet.native import compiler
from alexnet.nn import Parameter
from alexnet.ops import ConvolutionFilterGradient
from alexnet.training.updates import adadelta, adagrad, momentum_sgd, nesterov, sgd

pytestmark = [
    pytest.mark.compatibility,
    pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler"),
]
RULES = {"sgd": sgd, "momentum": momentum_sgd, "nesterov": nesterov, "adagrad": adagrad, "adadelta": adadelta}


def dense_gradient(x, g):
    """Gradient of a Dense layer's weights: x (inputs, batch) and g (outputs, batch) -> (inputs, outputs)."""
    x, g = (array.dimshuffle(0, "x", "x", 1) for array in (x, g))
    return ConvolutionFilterGradient()(x, g, 1, 1)[:, 0, 0, :]


def step_of(rule, weights, others=()):
    """Return a compiled step (x, g, rate), and the weights and velocities that it updates.

    Args:
        others: functions that map the gradient to further outputs of the step.
    """
    x, g = pt.tensor("x", shape=(len(weights), None)), pt.tensor("g", shape=(weights.shape[1], None))
    parameter, rate, gradient = Parameter(weights.copy(), "W"), pt.scalar("rate"), dense_gradient(x, g)
    pairs, velocities = rule([parameter], [gradient], rate)
    outputs = [output(gradient) for output in others]
    step = pytensor.function([x, g, rate], outputs, updates=pairs, mode=mode_of("cpu"))
    return step, [parameter.variable, *velocities]


def trained(step, variables, batch):
    """Return the values of the variables after three steps."""
    rng = np.random.default_rng(3)
    for _ in range(3):
        lengths = variables[0].get_value(borrow=True).shape
        step(*(rng.normal(size=(n, batch)).astype("float32") for n in lengths), np.float32(0.1))
    return [variable.get_value() for variable in variables]


def is_fused(step):
    return any("FilterGradientUpdate" in str(node.op) for node in step.maker.fgraph.toposort())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("inputs", "outputs", "batch"), [(64, 64, 16), (67, 77, 1), (101, 43, 37), (40, 130, 300)])
def test_fused_update_is_bit_identical(rule, inputs, outputs, batch, rng, monkeypatch):
    weights = rng.normal(size=(max(inputs, -(-4096 // outputs)), outputs)).astype("float32")
    fused, variables = step_of(RULES[rule], weights)
    together = trained(fused, variables, batch)
    monkeypatch.setattr(fused_update, "fuse", lambda fgraph: None)
    unfused, variables = step_of(RULES[rule], weights)
    assert is_fused(fused) and not is_fused(unfused)
    for result, expected in zip(together, trained(unfused, variables, batch), strict=True):
        np.testing.assert_array_equal(result, expected)
    assert not np.array_equal(together[0], weights)


def test_threads_do_not_change_an_update(rng):
    weights, results = rng.normal(size=(150, 130)).astype("float32"), []
    try:
        for threads in (1, 2, 3):
            compiler.use_threads(threads)
            results.append(trained(*step_of(momentum_sgd, weights), batch=21))
    finally:
        compiler.use_threads(None)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("other", [pt.sum, lambda gradient: gradient * 2], ids=["norm", "itself"])
def test_gradient_with_other_uses_is_not_fused(other, rng):
    step, variables = step_of(momentum_sgd, rng.normal(size=(80, 90)).astype("float32"), [other])
    assert not is_fused(step)
    trained(step, variables, batch=5)


def test_small_update_is_not_fused(rng):
    step, variables = step_of(momentum_sgd, rng.normal(size=(30, 20)).astype("float32"))
    assert not is_fused(step)
    trained(step, variables, batch=5)


def test_fused_update_of_strided_memory(rng):
    weights = np.asfortranarray(rng.normal(size=(90, 80)).astype("float32"))
    step, variables = step_of(momentum_sgd, weights)
    expected = trained(step, variables, batch=6)
    variables[0].set_value(weights.copy(order="F"), borrow=True)
    variables[1].set_value(np.zeros_like(weights), borrow=True)
    held = variables[0].get_value(borrow=True)
    assert not held.flags.c_contiguous
    for result, truth in zip(trained(step, variables, batch=6), expected, strict=True):
        np.testing.assert_allclose(result, truth, rtol=1e-5, atol=1e-6)
    assert np.shares_memory(held, variables[0].get_value(borrow=True))


def test_weights_are_read_before_they_are_updated(rng):
    """Backpropagation to the previous layer needs the old weights, which the update overwrites."""
    W = Parameter(rng.normal(size=(70, 60)).astype("float32"), "W")
    x, g = pt.tensor("x", shape=(70, None)), pt.tensor("g", shape=(60, None))
    updates, _ = sgd([W], [dense_gradient(x, g)], pt.constant(np.float32(0.1)))
    step = pytensor.function([x, g], W.variable @ g, updates=updates, mode=mode_of("cpu"))
    before, images = W.variable.get_value(), rng.normal(size=(70, 4)).astype("float32")
    gradient = rng.normal(size=(60, 4)).astype("float32")
    assert is_fused(step)
    np.testing.assert_allclose(step(images, gradient), before @ gradient, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(W.variable.get_value(), before)


def test_unequal_batches_are_refused(rng):
    step, _ = step_of(sgd, rng.normal(size=(80, 90)).astype("float32"))
    with pytest.raises(ValueError, match="make outputs"):
        step(np.ones((80, 4), "float32"), np.ones((90, 5), "float32"), np.float32(0.1))
