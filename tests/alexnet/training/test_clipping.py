"""Clipping by the global norm against PyTorch's definition in float64, and in a network on each backend."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.nn import Parameter
from alexnet.training.network import Network
from alexnet.training.updates import bind_update_rule, clip_by_global_norm, momentum_sgd, update_clipped
from tests import tiny
from tests.multigpu.exchange.workers import SmallNetwork, synthetic_batch

SHAPES = [(3, 4), (5,), (2, 2, 2)]


def clipped_truth(gradients, clip_norm):
    """Return the gradients after torch.nn.utils.clip_grad_norm_: the norm of the norms, and a factor of at most 1."""
    norm = np.linalg.norm([np.linalg.norm(g.astype("float64").ravel()) for g in gradients])
    return [g * min(clip_norm / (norm + 1e-6), 1.0) for g in gradients]


@pytest.mark.parametrize("magnitude", [1e-7, 0.1, 1.0, 1e6])
def test_clipped_gradients_match_float64(magnitude, rng):
    symbols = [pt.tensor(dtype="float64", shape=shape) for shape in SHAPES]
    run = pytensor.function(symbols, clip_by_global_norm(symbols, 1.5), mode="FAST_COMPILE")
    gradients = [magnitude * rng.normal(size=shape) for shape in SHAPES]
    for found, expected in zip(run(*gradients), clipped_truth(gradients, 1.5), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_weight_decay_is_added_after_clipping():
    parameter = Parameter(np.array([3.0, 4.0]), "W", dtype="float64")
    g, rate = pt.dvector(), pt.dscalar()
    pairs, _ = update_clipped(partial(momentum_sgd, momentum=0.9, weight_decay=0.01), 1.0, [parameter], [g], rate)
    step = pytensor.function([g, rate], [], updates=pairs, mode="FAST_COMPILE")
    w, v = np.array([3.0, 4.0]), np.zeros(2)
    for gradient in (np.array([6.0, 8.0]), np.array([0.3, 0.4])):
        (clipped,) = clipped_truth([gradient], 1.0)
        v = 0.9 * v - 0.1 * (clipped + 0.01 * w)
        w = w + v
        step(gradient, 0.1)
        np.testing.assert_allclose(parameter.variable.get_value(), w, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.01, 1e9])
def test_network_clips_the_norm_of_all_parameters(backend, clip_norm):
    """A step on clipped gradients, in one function and as compute and apply, matches float64."""
    rule = bind_update_rule(tiny.settings("none", "none", clip_norm=clip_norm, use_momentum="false", weight_decay=0))
    whole, halves = (
        Network(SmallNetwork(np.random.default_rng(0)), np.zeros((3, 6, 6), "float32"), rule, backend, crop=False)
        for _ in range(2)
    )
    batch = synthetic_batch(1, 0, 1, 1)
    before = {name: np.array(array) for name, array in whole.get_state().items()}
    whole.train(*batch, np.float32(0.1))
    halves.compute(*batch)
    gradients = clipped_truth([np.asarray(g.get_value()) for g in halves.gradients], clip_norm)
    halves.apply(np.float32(0.1))
    for parameter, g in zip(whole.trainable_parameters, gradients, strict=True):
        expected = before[parameter.name] - 0.1 * parameter.lr_mult * g
        for network in (whole, halves):
            found = network.get_state()[parameter.name]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=parameter.name)
    for name, array in whole.get_state().items():
        np.testing.assert_array_equal(halves.get_state()[name], array, err_msg=name)
