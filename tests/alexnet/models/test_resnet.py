"""ResNet-50 matches the paper's table and PyTorch; batch normalisation in training, validation, resumes and jobs."""

from unittest import mock

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.commands.summary import table
from alexnet.models import MODELS, Model
from alexnet.models.resnet import ResNet50, TorchvisionResNet50
from alexnet.native import compiler
from alexnet.nn import AveragePool, BatchNorm, Conv, Dense, Flatten, MaxPool, Parameter, Training, he
from alexnet.nn.residual import Bottleneck
from alexnet.training.network import Network, apply_layer_settings
from alexnet.training.objectives import cross_entropy
from alexnet.training.updates import momentum_sgd

OUTPUTS = {                                      # He et al. 2016, table 1
    "conv1": (64, 112, 112), "pool1": (64, 56, 56), "conv2.1": (256, 56, 56), "conv2.3": (256, 56, 56),
    "conv3.1": (512, 28, 28), "conv3.4": (512, 28, 28), "conv4.1": (1024, 14, 14), "conv4.6": (1024, 14, 14),
    "conv5.1": (2048, 7, 7), "conv5.3": (2048, 7, 7), "average49": (2048, 1, 1), "fc50": (1000,),
}
MACS = {"resnet50": "3,857,973,248", "torchvision_resnet50": "4,089,184,256"}      # the paper: 3.8e9


@pytest.mark.parametrize("name", MACS)
def test_table_matches_the_paper(name):
    model = MODELS[name](None)
    rows = {row.name: row for row in model.describe((3, 224, 224))}
    assert {each: rows[each].shape for each in OUTPUTS} == OUTPUTS
    assert sum(row.parameters for row in rows.values()) == 25_557_032
    assert sum(p.size for p in model.parameters if not p.running) == 25_557_032
    assert sum(p.size for p in model.parameters if p.running) == 53_120
    assert len({p.name for p in model.parameters}) == len(model.parameters) == 53 * 5 + 2
    assert table(model).splitlines()[-1].split() == ["total", "25,557,032", MACS[name]]
    assert model.classifiers == ("fc50",)


def test_strides_are_those_of_the_two_versions():
    for kind, strides in ((ResNet50, (2, 1)), (TorchvisionResNet50, (1, 2))):
        block = next(layer for layer in kind(None, 2).layers if getattr(layer, "name", "") == "conv3.1")
        assert (block.body.layers[0].stride, block.body.layers[2].stride) == strides
        assert block.shortcut.layers[0].stride == 2


def test_weights_preserve_the_variance_of_relu():
    """He et al. 2015, equation 10: variance 2 / (inputs per sum)."""
    assert he(288) == pytest.approx((2 / 288) ** 0.5)


# ---- a small network of the same layer types


class Small(Model):
    """Two blocks, with a projection and with the identity, on 14 x 14 pixels."""

    image_size = 28

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 8, size=7, stride=2, pad=3, std=0.02, bias=None), BatchNorm(8), MaxPool(3, 2, pad=1),
            Bottleneck(rng, "conv2.1", 8, 4, 2, stride_in_3x3=True), Bottleneck(rng, "conv2.2", 16, 4),
            AveragePool(4, 1), Flatten(), Dense(rng, 16, classes, relu=False, std=0.1),
        )


def small_truth(w, x):
    truth = pytest.importorskip("tests.torch_truth")
    x = truth.batch_norm(w, "bn1", truth.F.conv2d(x, w["conv1.W"], None, 2, 3))
    x = truth.bottleneck(w, "conv2.1", w.max_pool(w.relu(x), 3, 2, 1), 2, True)
    return [truth.dense(w, "fc8", truth.bottleneck(w, "conv2.2", x, 1, True).mean((2, 3)))]


def small_images(rng, batch=5):
    return rng.normal(size=(3, 28, 28, batch)).astype("float32") * 60, (np.arange(batch) * 3 % 5).astype("int32")


def test_outputs_and_gradients_match_pytorch(mode, rng):
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    model = Small(rng, classes=5)
    variables = [parameter.variable for parameter in model.parameters if not parameter.running]
    x, y = pt.tensor("x", shape=(3, 28, 28, None), dtype="float32"), pt.ivector("y")
    logits, _ = model.training_outputs(x, Training(1, 2))
    cost = cross_entropy(logits, y)
    run = pytensor.function([x, y], [logits, cost, *pytensor.grad(cost, variables)], mode=mode)
    images, labels = small_images(rng)
    logits, value, *gradients = map(np.asarray, run(images, labels))
    arrays = {parameter.name: parameter.variable.get_value() for parameter in model.parameters}
    expected = truth.results(small_truth, arrays, images, labels)
    assert truth.distance(logits, expected.logits) < 1e-5
    assert value == pytest.approx(expected.cost, rel=1e-5)
    for variable, gradient in zip(variables, gradients, strict=True):
        assert truth.distance(gradient, expected.gradients[variable.name]) < 1e-5, variable.name


def small_network(rng, backend="numpy", frozen=()):
    model = Small(rng, classes=5)

    class Settings:
        layer_rates, frozen_layers = {}, frozen

    apply_layer_settings(model, Settings)
    return Network(model, np.zeros((3, 256, 256)), momentum_sgd, backend, crop=False)


def values(network):
    return {name: np.array(array) for name, array in network.get_state().items()}


def test_running_statistics_follow_those_of_the_batches(backend, rng):
    """running <- 0.9 running + 0.1 batch, with the variance divided by n - 1, as in PyTorch; the step is train's."""
    network = small_network(rng, backend)
    images, labels = small_images(rng)
    before, of_conv1 = values(network), []
    for _ in range(2):
        W = network.model.parameters[0].variable.get_value()
        x = pt.tensor("x", shape=images.shape, dtype="float32")
        of_conv1.append(pytensor.function([x], network.model.layers[0](x), mode=mode_of("numpy"))(images))
        network.train(images, labels, np.float32(0.01))
        assert not np.array_equal(W, network.model.parameters[0].variable.get_value())
    mean, variance = np.zeros(8), np.ones(8)
    for y in of_conv1:
        mean = 0.9 * mean + 0.1 * y.mean((1, 2, 3), dtype=np.float64)
        variance = 0.9 * variance + 0.1 * y.var((1, 2, 3), dtype=np.float64, ddof=1)
    after = values(network)
    np.testing.assert_allclose(after["bn1.mean"], mean, rtol=1e-5, atol=1e-5 * abs(mean).max())
    np.testing.assert_allclose(after["bn1.variance"], variance, rtol=1e-5)
    assert all(not np.array_equal(before[name], after[name]) for name in before if name.endswith((".mean", ".gamma")))


def test_validation_uses_running_statistics(backend, rng):
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    network = small_network(rng, backend)
    statistics = {
        parameter.name: rng.uniform(0.5, 2, parameter.shape).astype("float32")
        for parameter in network.model.parameters if parameter.running
    }
    network.set_parameters(statistics)
    images, labels = small_images(rng)
    truth.check_inference(network, small_truth, images)
    alone = [network.logits(images[..., n : n + 1]) for n in range(2)]
    np.testing.assert_allclose(np.concatenate(alone, axis=1), network.logits(images[..., :2]), rtol=1e-4, atol=1e-5)
    network.validate(images, labels)
    assert all(np.array_equal(values(network)[name], array) for name, array in statistics.items())


def test_negative_running_variance_counts_as_zero(rng):
    network = small_network(rng)
    network.set_parameters({"bn1.variance": np.full(8, -1e-3, "float32")})
    assert np.isfinite(network.logits(small_images(rng)[0])).all()


def test_frozen_layer_keeps_and_uses_running_statistics(rng):
    network = small_network(rng, frozen=("bn1", "conv2.1"))
    network.set_parameters({"bn1.mean": np.full(8, 7, "float32")})
    images, labels = small_images(rng)
    x = pt.tensor("x", shape=images.shape, dtype="float32")
    (conv1, bn1, *_), updates = network.model.layers, Training(1, 2)
    y = conv1(x)
    same = pytensor.function([x], [bn1(y, updates), bn1(y)], mode=mode_of("numpy"))(images)
    np.testing.assert_array_equal(*same)
    assert updates.updates == []
    before = values(network)
    network.train(images, labels, np.float32(0.1))
    after = values(network)
    frozen = {name for name in before if name.startswith(("bn1.", "conv2.1."))}
    assert {"bn1.mean", "bn1.gamma", "conv2.1.bn1.variance", "conv2.1.projection.W"} <= frozen
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert not changed & frozen and {"conv1.W", "conv2.2.bn1.mean", "conv2.2.bn3.beta"} <= changed
    assert {variable.name for variable in network.running_statistics} == {
        name for name in before if name.startswith("conv2.2.") and name.endswith((".mean", ".variance"))
    }


def test_compute_and_apply_equal_train(rng):
    one, other = small_network(np.random.default_rng(1)), small_network(np.random.default_rng(1))
    images, labels = small_images(rng)
    for _ in range(2):
        one.train(images, labels, np.float32(0.01))
        other.compute(images, labels)
        other.apply(np.float32(0.01))
    for name, array in values(one).items():
        np.testing.assert_array_equal(array, values(other)[name], err_msg=name)


# ---- the whole network


def whole_network_data(rng):
    return rng.normal(size=(3, 224, 224, 4)).astype("float32") * 60, np.array([2, 0, 3, 1], "int32")


def truth_of(kind):
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    if not compiler.compiler_available():
        pytest.skip("the cpu backend needs a C compiler")
    return truth, lambda w, x: truth.resnet50(w, x, kind.stride_in_3x3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ResNet50, TorchvisionResNet50])
def test_float64_step_matches_pytorch(kind, rng):
    """Without given decisions: rounding hardly changes any in float64."""
    truth, reference = truth_of(kind)
    with mock.patch.object(Parameter.__init__, "__defaults__", (1.0, 1.0, "float64", False)):
        model = kind(rng, classes=4)
    images, labels = whole_network_data(rng)
    variables = [parameter.variable for parameter in model.parameters if not parameter.running]
    x, y = pt.tensor("x", shape=images.shape, dtype="float64"), pt.ivector("y")
    logits, _ = model.training_outputs(x, Training(1, 2))
    cost = cross_entropy(logits, y)
    run = pytensor.function([x, y], [logits, *pytensor.grad(cost, variables)], mode=mode_of("cpu"))
    logits, *gradients = run(images.astype("float64"), labels)
    arrays = {parameter.name: parameter.variable.get_value() for parameter in model.parameters}
    expected = truth.results(reference, arrays, images, labels)
    assert truth.distance(logits, expected.logits) < 1e-9
    for variable, gradient in zip(variables, gradients, strict=True):
        assert truth.distance(gradient, expected.gradients[variable.name]) < 1e-9, variable.name


@pytest.mark.slow
def test_step_and_inference_are_as_exact_as_pytorchs():
    """In float32, whose rounding 53 batch normalisations amplify to 1e-4 of a gradient, here and in PyTorch."""
    truth, reference = truth_of(TorchvisionResNet50)
    rng = np.random.default_rng(3)
    network = Network(TorchvisionResNet50(rng, classes=4), np.zeros((3, 256, 256)), momentum_sgd, crop=False)
    images, labels = whole_network_data(rng)
    truth.check_step(network, reference, images, labels, bound="float32")
    for _ in range(3):
        network.train(images, labels, np.float32(0.001))
    truth.check_inference(network, reference, images)
