"""Which gradients are exchanged during the backward pass."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.models import model_class
from alexnet.training.gradient_groups import first_group, multiplications, nodes_of
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd


def network_of(model):
    return Network(model_class(model)(np.random.default_rng(0)), np.zeros((3, 256, 256), "float32"), momentum_sgd)


@pytest.fixture(scope="module")
def alexnet():
    return network_of("alexnet")


def test_alexnets_first_group_is_its_dense_layers(alexnet):
    early, late = alexnet.gradient_groups
    names = [parameter.name for parameter in alexnet.trainable_parameters]
    assert [names[n] for n in early] == ["conv5.b", "fc6.W", "fc6.b", "fc7.W", "fc7.b", "fc8.W", "fc8.b"]
    assert sorted(early + late) == list(range(16))
    sizes = [parameter.size for parameter in alexnet.trainable_parameters]
    assert sum(sizes[n] for n in early) / sum(sizes) == pytest.approx(0.962, abs=1e-3)


def test_multiplications_equal_three_times_the_forward_pass(alexnet):
    """Backward is one pass for the filters of each layer, and one for its inputs except in the first layer."""
    graph = alexnet.training_graph
    counted = sum(multiplications(node) for node in nodes_of([*graph.outputs, *graph.gradients]))
    conv = [121 * 3 * 96 * 55**2, 25 * 48 * 256 * 27**2, *(9 * 169 * n for n in (256 * 384, 192 * 384, 192 * 256))]
    dense = [9216 * 4096, 4096 * 4096, 4096 * 1000]
    assert counted == 3 * sum(conv + dense) - conv[0]


@pytest.mark.parametrize("model", ["googlenet", "resnet50"])
def test_first_group_has_half_of_bytes_before_half_of_the_work(model):
    network = network_of(model)
    graph, (early, _) = network.training_graph, network.gradient_groups
    work = sum(multiplications(node) for node in nodes_of([*graph.outputs, *graph.gradients]))
    first = sum(multiplications(node) for node in nodes_of([*graph.outputs, *(graph.gradients[n] for n in early)]))
    sizes = [parameter.size for parameter in network.trainable_parameters]
    assert sum(sizes[n] for n in early) / sum(sizes) > 0.5
    assert first / work < 0.5


def test_dense_network_of_plain_pytensor_is_split():
    x = pt.matrix("x", dtype="float32", shape=(8, 10))
    weights = [pytensor.shared(np.zeros(shape, "f4"), shape=shape) for shape in ((10, 400), (400, 10), (10, 4))]
    hidden = x
    for w in weights:
        hidden = pt.tanh(hidden @ w)
    cost = hidden.sum()
    chosen = first_group([cost], pytensor.grad(cost, weights), [4000, 4000, 40])
    assert chosen == [1, 2]


def test_one_gradient_is_one_group():
    w = pytensor.shared(np.ones((3, 2), "f4"), shape=(3, 2))
    cost = (pt.matrix("x", dtype="float32", shape=(5, 3)) @ w).sum()
    assert first_group([cost], [pytensor.grad(cost, w)], [6]) == [0]
