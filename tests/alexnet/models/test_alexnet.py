"""AlexNet matches the paper (parameters, shapes, operations, initial values, first cost) and PyTorch's outputs."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.models.alexnet import AlexNet
from alexnet.nn import Training
from alexnet.training.objectives import cross_entropy

TABLE = {                                        # name: output shape, per-image multiply-adds; theano_alexnet
    "conv1": ((96, 55, 55), 105_415_200),
    "pool1": ((96, 27, 27), 0),
    "conv2": ((256, 27, 27), 223_948_800),
    "pool2": ((256, 13, 13), 0),
    "conv3": ((384, 13, 13), 149_520_384),
    "conv4": ((384, 13, 13), 112_140_288),
    "conv5": ((256, 13, 13), 74_760_192),
    "pool5": ((256, 6, 6), 0),
    "fc6": ((4096,), 37_748_736),
    "fc7": ((4096,), 16_777_216),
    "fc8": ((1000,), 4_096_000),
}


@pytest.fixture(scope="module")
def model():
    return AlexNet(np.random.default_rng(0))


def test_summary_is_the_papers_table(model):
    rows = {row.name: row for row in model.describe((3, 227, 227))}
    assert {name: (rows[name].shape, rows[name].macs) for name in TABLE} == TABLE
    assert sum(row.parameters for row in rows.values()) == 60_965_224
    assert sum(parameter.size for parameter in model.parameters) == 60_965_224


def test_initial_values_match_the_paper(model):
    spread = {"conv": 0.01, "fc6": 0.005, "fc7": 0.005, "fc8": 0.01}
    biases = {"conv1": 0, "conv2": 0.1, "conv3": 0, "conv4": 0.1, "conv5": 0, "fc6": 0.1, "fc7": 0.1, "fc8": 0}
    for parameter in model.parameters:
        layer, letter = parameter.name.split(".")
        value = parameter.variable.get_value(borrow=True)
        if letter == "b":
            assert (value == np.float32(biases[layer])).all()
        else:
            assert value.std() == pytest.approx(spread.get(layer, spread.get(layer[:4])), rel=0.02)
            assert abs(value.mean()) < 3 * value.std() / np.sqrt(value.size)


def test_biases_have_double_rate_and_no_decay(model):
    rates = {(p.name[-1], p.lr_mult, p.decay_mult) for p in model.parameters}
    assert rates == {("W", 1.0, 1.0), ("b", 2.0, 0.0)}


def test_number_of_classes_changes_only_last_layer(model):
    ten = AlexNet(np.random.default_rng(0), classes=10)
    shapes = [p.shape for p in ten.parameters], [p.shape for p in model.parameters]
    assert shapes[0][:-2] == shapes[1][:-2]
    assert shapes[0][-2:] == [(4096, 10), (10,)]


def test_first_cost_is_ln_classes(model, rng):
    x, y = pt.tensor("x", shape=(3, 227, 227, None), dtype="float32"), pt.ivector("y")
    cost = cross_entropy(model(x, Training(np.int64(1), np.int64(0))), y)
    images = (rng.random((3, 227, 227, 4), dtype="float32") - 0.5) * 255
    value = pytensor.function([x, y], cost, mode=mode_of("cpu"))(images, rng.integers(0, 1000, 4).astype("int32"))
    assert value == pytest.approx(np.log(1000), abs=0.1)
