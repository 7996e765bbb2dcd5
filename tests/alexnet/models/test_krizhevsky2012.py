"""krizhevsky2012 matches layers-145.cfg: shapes, initial values, and two towers computed in float64."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.models.krizhevsky2012 import Krizhevsky2012
from alexnet.native import compiler
from alexnet.nn import Conv
from alexnet.nn.towers import SpatialLRN, TowerLRN
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from tests import caffe_truth

TABLE = {                                        # name: output shape of both towers together; layers-145.cfg
    "conv1": (96, 55, 55), "lrn1": (96, 55, 55), "pool1": (96, 27, 27), "relu1": (96, 27, 27),
    "conv2": (256, 27, 27), "lrn2": (256, 27, 27), "spatial_lrn2": (256, 27, 27), "pool2": (256, 13, 13),
    "conv3": (384, 13, 13), "conv4": (384, 13, 13), "conv5": (256, 13, 13), "pool5": (256, 6, 6),
    "flatten5": (9216,), "fc6": (4096,), "dropout6": (4096,), "fc7": (4096,), "dropout7": (4096,), "fc8": (1000,),
}
INITIAL = {                                      # initW, initB
    "conv1": (0.01, 0), "conv2": (0.01, 1), "conv3": (0.03, 0), "conv4": (0.03, 1), "conv5": (0.03, 1),
    "fc6": (0.01, 1), "fc7": (0.01, 1), "fc8": (0.01, 0),
}
GRADIENTS = "conv1.W", "conv1.b", "conv2.W", "conv2.b", "conv3.W", "conv5.W", "fc8.W"


def test_summary_is_the_published_definition():
    rows = list(Krizhevsky2012(None).describe((3, 224, 224)))
    assert {row.name: row.shape for row in rows} == TABLE
    assert sum(row.parameters for row in rows) == 60_965_224


def test_initial_values_match_the_published_definition():
    for name, (W, b) in Krizhevsky2012(np.random.default_rng(0)).weight_layers.items():
        std, bias = INITIAL[name]
        assert W.variable.get_value(borrow=True).std() == pytest.approx(std, rel=0.02)
        assert (b.variable.get_value() == bias).all()
        assert (W.lr_mult, W.decay_mult, b.lr_mult, b.decay_mult) == (1, 1, 2, 0)


# ---- layers


def run(layer, images, mode):
    x = pt.tensor("x", shape=(*images.shape[:3], None), dtype="float32")
    return np.asarray(pytensor.function([x], layer(x), mode=mode)(images))


def test_conv_with_ceil_completes_the_last_window_with_zeros(mode, rng):
    images = rng.normal(size=(3, 10, 10, 2)).astype("float32")
    up, down = Conv(rng, 3, 4, 5, stride=4, ceil=True), Conv(None, 3, 4, 5, stride=4)
    down.W.variable.set_value(up.W.variable.get_value())
    padded = np.pad(images, ((0, 0), (0, 3), (0, 3), (0, 0)))
    y = run(up, images, mode)
    assert y.shape == (4, 3, 3, 2) == (*next(up.describe((3, 10, 10))).shape, 2)
    np.testing.assert_allclose(y, run(down, padded, mode), rtol=1e-4, atol=1e-6)


def test_spatial_lrn_and_its_gradient_match_formula(mode, rng):
    images, g, direction = (rng.normal(size=(2, 6, 7, 1)).astype("float32") * 30 for _ in range(3))
    x = pt.tensor("x", shape=(2, 6, 7, None), dtype="float32")
    y = SpatialLRN()(x)
    y, gradient = map(np.asarray, pytensor.function([x], [y, pytensor.grad((y * g).sum(), x)], mode=mode)(images))
    np.testing.assert_allclose(y[..., 0], spatially_normalised(images[..., 0]), rtol=1e-5)
    images, direction = images[..., 0].astype("float64"), direction[..., 0].astype("float64")
    behind, ahead = (spatially_normalised(images + step * direction) for step in (-1e-5, 1e-5))
    slope = np.sum(g[..., 0] * (ahead - behind)) / 2e-5
    assert np.sum(gradient[..., 0] * direction) == pytest.approx(slope, rel=1e-4)


def test_towers_are_normalised_separately(mode, rng):
    x = rng.normal(size=(8, 2, 2, 1)).astype("float32") * 100
    y, (a, b) = run(TowerLRN(), x, mode), np.split(x[..., 0], 2)
    expected = np.concatenate([caffe_truth.normalised(part, k=2.0) for part in (a, b)])
    np.testing.assert_allclose(y[..., 0], expected, rtol=1e-5)


# ---- the whole network


def spatially_normalised(x):
    padded = np.pad(x.astype("float64") ** 2, ((0, 0), (2, 2), (2, 2)))
    rows, columns = x.shape[1:]
    squares = sum(padded[:, i : i + rows, j : j + columns] for i in range(5) for j in range(5))
    return x / (1 + 0.001 / 25 * squares) ** 0.75


def logits_of_two_towers(arrays, image):
    """Return the outputs in float64, tower by tower, as layers-145.cfg lists them."""
    def conv(name, x, tower, stride=1, pad=1):
        W, b = (np.split(arrays[f"{name}.{letter}"], 2, axis=-1)[tower] for letter in "Wb")
        return caffe_truth.convolution(x, W.transpose(3, 0, 1, 2), b, stride, pad, 1)

    def dense(name, x):
        return arrays[f"{name}.W"].T.astype("float64") @ x + arrays[f"{name}.b"]

    def relu(x):
        return np.maximum(x, 0)

    image = np.pad(image.astype("float64"), ((0, 0), (0, 3), (0, 3)))
    towers = [conv("conv1", image, tower, stride=4, pad=0) for tower in (0, 1)]
    towers = [relu(caffe_truth.max_pool(caffe_truth.normalised(x, k=2.0))) for x in towers]
    towers = [caffe_truth.normalised(relu(conv("conv2", x, tower, pad=2)), k=2.0) for tower, x in enumerate(towers)]
    both = np.concatenate([caffe_truth.max_pool(spatially_normalised(x)) for x in towers])
    towers = [relu(conv("conv3", both, tower)) for tower in (0, 1)]
    towers = [relu(conv("conv4", x, tower)) for tower, x in enumerate(towers)]
    towers = [relu(caffe_truth.max_pool(conv("conv5", x, tower))) for tower, x in enumerate(towers)]
    hidden = relu(dense("fc7", relu(dense("fc6", np.concatenate(towers).reshape(-1)))))
    return dense("fc8", hidden)


def cost_of_two_towers(arrays, image, label):
    logits = logits_of_two_towers(arrays, image)
    return np.log(np.exp(logits - logits.max()).sum()) - (logits[label] - logits.max())


@pytest.mark.slow
@pytest.mark.skipif(not compiler.compiler_available(), reason="the cpu backend needs a C compiler")
def test_step_matches_two_towers_in_float64(rng):
    network = Network(
        Krizhevsky2012(np.random.default_rng(0), dropout_rate=0), np.zeros((3, 256, 256)), momentum_sgd, crop=False
    )
    images, labels = (rng.random((3, 224, 224, 1), "float32") - 0.5) * 255, np.array([7], "int32")
    cost, _ = network.compute(images, labels)
    arrays = {variable.name: variable.get_value() for variable in network.parameters}
    assert cost == pytest.approx(cost_of_two_towers(arrays, images[..., 0], 7), rel=1e-5)

    # the slope of a function along its gradient g is g . g
    gradients = {v.name: g.get_value() for v, g in zip(network.parameters, network.gradients, strict=True)}
    for name in GRADIENTS:
        g = gradients[name].astype("float64")
        slope = np.sum(g * g)
        step = 1e-4 / slope
        behind, ahead = (
            cost_of_two_towers(arrays | {name: arrays[name] + sign * step * g}, images[..., 0], 7) for sign in (-1, 1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=2e-3), name


def test_parameters_and_shapes_match_pytorch():
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    modules = truth.modules_of_krizhevsky2012()
    shapes = {parameter.name: parameter.shape for parameter in Krizhevsky2012(None).parameters}
    expected = {
        f"{layer}.{letter}": truth.in_our_layout(tensor.detach()).shape
        for layer, module in modules.items() for letter, tensor in (("W", module.weight), ("b", module.bias))
    }
    assert shapes == expected
    assert sum(parameter.numel() for parameter in modules.parameters()) == 60_965_224


@pytest.mark.slow
@pytest.mark.skipif(not compiler.compiler_available(), reason="the cpu backend needs a C compiler")
def test_step_matches_pytorch_in_float64(rng):
    """Logits, cost and all gradients, and all velocities and weights after the first step."""
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    network = Network(
        Krizhevsky2012(np.random.default_rng(0), dropout_rate=0), np.zeros((3, 256, 256)), momentum_sgd, crop=False
    )
    images, labels = (rng.random((3, 224, 224, 2), "float32") - 0.5) * 255, np.array([7, 900], "int32")
    arrays = {variable.name: variable.get_value() for variable in network.parameters}
    _, expected, _ = truth.check_step(network, truth.krizhevsky2012, images, labels)
    network.train(images, labels, np.float32(0.01))
    changes = truth.velocities_of_sgd(arrays, expected.gradients, 0.01)
    state = network.get_state()
    for name, change in changes.items():
        assert truth.distance(state[f"{name}.velocity"], change) < 1e-5, name
        assert truth.distance(state[name], arrays[name] + change) < 1e-5, name
