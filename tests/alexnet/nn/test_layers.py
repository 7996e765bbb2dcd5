"""Layers: numbering, order of pooling, dropout only during training, rejected arguments."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.native import compiler
from alexnet.nn import LRN, Background, Conv, Dense, Dropout, Flatten, MaxPool, Sequential, Training, relu


def test_layers_are_numbered_by_weight_layers(rng):
    net = Sequential(Conv(rng, 3, 4, 3, pool=(2, 2)), LRN(), Flatten(), Dense(rng, 36, 5), Dropout(0.5, 1))
    assert net.names == ("conv1", "lrn1", "flatten1", "fc2", "dropout2")
    assert [p.name for p in net.parameters] == ["conv1.W", "conv1.b", "fc2.W", "fc2.b"]
    assert [(row.name, row.shape) for row in net.describe((3, 8, 8))] == [
        ("conv1", (4, 6, 6)), ("pool1", (4, 3, 3)), ("lrn1", (4, 3, 3)),
        ("flatten1", (36,)), ("fc2", (5,)), ("dropout2", (5,)),
    ]


def test_background_initialisation_gives_the_same_weights():
    background = Background(np.random.default_rng(3))
    nets = [
        Sequential(Conv(rng, 3, 8, 5), Flatten(), Dense(rng, 300, 4000), Dense(rng, 4000, 7, std=0.02))
        for rng in (np.random.default_rng(3), background)
    ]
    background.wait()
    for once, later in zip(*(net.parameters for net in nets), strict=True):
        np.testing.assert_array_equal(once.variable.get_value(), later.variable.get_value())
    assert 0.0199 < nets[1].parameters[-2].variable.get_value().std() < 0.0201


def test_pooling_before_bias_and_relu_is_bit_exact(rng):
    conv = Conv(rng, 3, 4, 3, pool=(3, 2), bias=-0.08)
    x = pt.tensor("x", shape=(3, 9, 9, None), dtype="float32")
    after = MaxPool(3, 2)(relu(conv.convolution(x, conv.W.variable) + conv.b.variable.dimshuffle(0, "x", "x", "x")))
    function = pytensor.function([x], [conv(x), after], mode="FAST_COMPILE")
    before, after = function(rng.normal(size=(3, 9, 9, 5)).astype("float32"))
    assert (before > 0).any() and (before == 0).any()
    np.testing.assert_array_equal(before, after)


def test_flatten_keeps_the_channel_outermost():
    x = pt.tensor("x", shape=(2, 3, 3, None), dtype="float32")
    images = np.arange(36, dtype="float32").reshape(2, 3, 3, 2)
    flat = pytensor.function([x], Flatten()(x), mode="FAST_COMPILE")(images)
    np.testing.assert_array_equal(flat, images.reshape(18, 2))


def test_dense_is_the_matrix_product(rng):
    dense = Dense(rng, 6, 4, relu=False, std=1.0)
    x = pt.tensor("x", shape=(6, None), dtype="float32")
    features = rng.normal(size=(6, 3)).astype("float32")
    expected = dense.W.variable.get_value().T.astype("float64") @ features + 0.1
    np.testing.assert_allclose(pytensor.function([x], dense(x), mode="FAST_COMPILE")(features), expected, rtol=1e-5)


def test_dropout_acts_only_in_training(rng):
    x = pt.matrix("x", dtype="float32")
    layer = Dropout(0.5, 3)
    assert layer(x) is x
    assert Dropout(0, 3)(x, Training(1, 2)) is x
    dropped = pytensor.function([x], layer(x, Training(np.int64(1), np.int64(2))), mode="FAST_COMPILE")
    assert set(np.unique(dropped(np.ones((50, 50), "float32")))) == {0.0, 2.0}


def test_dropout_stream_is_the_layer_number():
    net = Sequential(Dense(None, 4, 4), Dense(None, 4, 4), Dropout(0.5), Dense(None, 4, 4), Dropout(0.5, stream=9))
    assert [layer.stream for layer in net.layers if isinstance(layer, Dropout)] == [2, 9]
    with pytest.raises(ValueError, match="needs a stream"):
        Dropout(0.5)(pt.matrix("x", dtype="float32"), Training(1, 2))


def test_groups_that_do_not_divide_are_refused(rng):
    with pytest.raises(ValueError, match="groups must divide channels and filters, got 2 for 3 and 4"):
        Conv(rng, 3, 4, 3, groups=2)


def test_relu_gradient_is_zero_for_negative_values(mode):
    x, g = pt.vector("x"), pt.vector("g")
    y = relu(x)
    run = pytensor.function([x, g], [y, pytensor.grad((y * g).sum(), x)], mode=mode)
    values = np.array([-1, 0, 2, np.nan, np.inf], "float32")
    y, gradient = run(values, np.array([3, 4, 5, 6, np.nan], "float32"))
    np.testing.assert_array_equal(y, [0, 0, 2, np.nan, np.inf])
    np.testing.assert_array_equal(gradient, [0, 0, 5, 0, np.nan])


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
def test_relu_gradient_needs_only_the_output(rng):
    """The activation therefore overwrites the convolution's output, and only one of the two arrays is kept."""
    first, second = Conv(rng, 3, 4, 3), Conv(rng, 4, 5, 3)
    x = pt.tensor("x", shape=(3, 9, 9, None), dtype="float32")
    gradient = pytensor.grad(second(first(x)).sum(), first.W.variable)
    graph = pytensor.function([x], gradient, mode=mode_of("cpu")).maker.fgraph
    convolution = next(node for node in graph.toposort() if "Convolution{" in str(node.op))
    ((activation, _),) = graph.clients[convolution.outputs[0]]
    assert len(activation.outputs) == 1 and activation.op.destroy_map
