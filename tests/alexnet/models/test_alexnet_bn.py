"""AlexNet-BN: the layers of AlexNet, and a normalisation without gamma and beta that training leaves unchanged."""

import numpy as np
import pytest

from alexnet.models import model_class
from alexnet.training.network import Network
from alexnet.training.updates import bind_update_rule
from tests.tiny import settings


def test_parameters_are_those_of_alexnet_without_normalisation_factors():
    ours, alexnet = (dict(model_class(name).outline().shapes) for name in ("alexnet_bn", "alexnet"))
    statistics = {name for name in ours if name.startswith("bn")}
    assert {name: shape for name, shape in ours.items() if name not in statistics} == alexnet
    assert {ours[f"bn{n}.mean"] for n in range(1, 5)} == {(96,), (256,), (384,)}


def test_gamma_and_beta_are_no_parameters_of_training():
    model = model_class("alexnet_bn")(None, classes=2)
    trained = {parameter.name for parameter in model.parameters if parameter.trainable and not parameter.running}
    assert trained == {f"{layer}.{name}" for layer in model.weight_layers if layer[:2] != "bn" for name in "Wb"}


@pytest.mark.slow
def test_step_with_lars_changes_weights_and_running_statistics(rng):
    rule = bind_update_rule(settings("none", "none", update="lars"))
    model = model_class("alexnet_bn")(np.random.default_rng(0), classes=2)
    network = Network(model, np.zeros((3, 256, 256)), rule, "cpu", crop=False)
    before = {name: np.array(array) for name, array in network.get_state().items()}
    images = rng.normal(0, 60, (3, 227, 227, 4)).astype("float32")
    cost, _ = network.train(images, np.array([0, 1, 0, 1], "int32"), np.float32(0.1))
    assert np.isfinite(cost)
    unchanged = {name for name, array in network.get_state().items() if np.array_equal(array, before[name])}
    assert unchanged == {f"bn{n}.{name}" for n in range(1, 5) for name in ("gamma", "beta")}
