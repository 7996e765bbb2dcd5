"""GoogLeNet matches the paper's shapes and PyTorch's outputs and gradients; only training has the auxiliary towers."""

from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.commands.summary import table
from alexnet.config.schema import ConfigError
from alexnet.models import MODELS, Model
from alexnet.models.googlenet import GoogLeNet
from alexnet.native import compiler
from alexnet.nn import Conv, Dense, Flatten, Training
from alexnet.nn.inception import Inception, InceptionClassifier
from alexnet.pretrained import Weights, load, save
from alexnet.pretrained.initialization import new_layers
from alexnet.training.network import Network, apply_layer_settings
from alexnet.training.objectives import training_cost
from alexnet.training.updates import momentum_sgd
from tests.small_alexnet import same_bits

pytestmark = pytest.mark.slow

TOWERS = ("aux_4a", "aux_4d")
OUTPUTS = {                                      # Szegedy et al. 2014, table 1
    "conv1": (64, 112, 112), "pool1": (64, 56, 56), "conv3": (192, 56, 56), "pool3": (192, 28, 28),
    "inception_3a": (256, 28, 28), "inception_3b": (480, 28, 28), "pool7": (480, 14, 14),
    "inception_4a": (512, 14, 14), "inception_4b": (512, 14, 14), "inception_4c": (512, 14, 14),
    "inception_4d": (528, 14, 14), "inception_4e": (832, 14, 14), "pool17": (832, 7, 7),
    "inception_5a": (832, 7, 7), "inception_5b": (1024, 7, 7), "average21": (1024, 1, 1), "fc22": (1000,),
    "aux_4a.average": (512, 4, 4), "aux_4d.average": (528, 4, 4), "aux_4d.classifier": (1000,),
}


def is_tower(name):
    return name.startswith(TOWERS)


def test_table_matches_the_paper():
    model = GoogLeNet(None)
    rows = {row.name: row for row in model.describe((3, 224, 224))}
    assert {name: rows[name].shape for name in OUTPUTS} == OUTPUTS
    for total in (sum(row.parameters for row in rows.values()), sum(p.size for p in model.parameters)):
        assert total == 13_378_280
    assert sum(p.size for p in model.parameters if not is_tower(p.name)) == 6_998_552
    assert len({p.name for p in model.parameters}) == len(model.parameters) == 2 * (3 + 9 * 6 + 2 * 3 + 1)
    assert [line.split()[-2:] for line in table(model).splitlines()[-2:]] == [
        ["13,378,280", "1,591,044,096"], ["6,998,552", "1,582,671,872"],
    ]


def test_bvlc_googlenet_matches_its_prototxt():
    """Ceil-mode pooling gives the paper's shapes; normalisation follows pooling once and precedes it once."""
    rows = list(MODELS["bvlc_googlenet"](None).describe((3, 224, 224)))
    assert {row.name: row.shape for row in rows if row.name in OUTPUTS} == OUTPUTS
    assert [row.name for row in rows[:7]] == ["conv1", "pool1", "lrn1", "conv2", "conv3", "lrn3", "pool3"]
    ours, caffes = ([(p.name, p.shape) for p in MODELS[name](None).parameters] for name in
                    ("googlenet", "bvlc_googlenet"))
    assert ours == caffes


def test_classes_set_all_three_classifiers():
    assert GoogLeNet(None, classes=7).classifiers == ("aux_4a.classifier", "aux_4d.classifier", "fc22")
    thousand, seven = (GoogLeNet(None, classes=n).parameters for n in (1000, 7))
    changed = [one.name for one, other in zip(thousand, seven, strict=True) if one.shape != other.shape]
    assert changed == [f"{layer}.{letter}" for layer in GoogLeNet(None, 7).classifiers for letter in "Wb"]


def test_layer_settings_accept_blocks_and_inner_layers():
    class Settings:
        layer_rates, frozen_layers = {"inception_3a.5x5": 3.0, "aux_4a": 0.5}, ("inception_3b", "conv1")

    model = GoogLeNet(None, classes=7)
    apply_layer_settings(model, Settings)
    layers = model.weight_layers
    frozen = [name for name, parameters in layers.items() if not parameters[0].trainable]
    assert frozen == ["conv1", *(name for name in layers if name.startswith("inception_3b."))] and len(frozen) == 7
    rates = {name: parameters[0].lr_mult for name, parameters in layers.items() if parameters[0].lr_mult != 1}
    assert rates == {"inception_3a.5x5": 3, "aux_4a.conv": 0.5, "aux_4a.fc": 0.5, "aux_4a.classifier": 0.5}
    Settings.frozen_layers = ("inception_3",)
    with pytest.raises(ConfigError, match="there is no layer 'inception_3'; there are conv1"):
        apply_layer_settings(model, Settings)


def test_dropout_rates_match_the_paper():
    def rates(rate):
        model = GoogLeNet(None, 7, rate)
        towers = [layer.tower for layer in model.auxiliaries]
        return [layer.rate for part in (*towers, model) for layer in part.layers if hasattr(layer, "rate")]

    assert (rates(0.5), rates(0)) == ([0.7, 0.7, 0.4], [0, 0, 0])


# ---- a small network of the same layer types, on every backend


class Small(Model):
    """One block of each type, on 14 x 14 pixels."""

    image_size = 28

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 8, size=7, stride=2, pad=3, std=0.02),
            Inception(rng, "inception_3a", 8, 6, (5, 7), (4, 5), 3),
            InceptionClassifier(rng, "aux_4a", 21, classes, 0.7, stream=1),
            Inception(rng, "inception_3b", 21, 4, (5, 6), (4, 5), 6),                Flatten(),
            Dense(rng, 21 * 14 * 14, classes, relu=False, std=0.01),
        )


def small_truth(w, x):
    truth = pytest.importorskip("tests.torch_truth")
    x = truth.inception(w, "inception_3a", truth.conv(w, "conv1", x, 2, 3))
    return [truth.tower(w, "aux_4a", x), truth.dense(w, "fc6", truth.inception(w, "inception_3b", x).flatten(1))]


def test_outputs_cost_and_gradients_match_pytorch(mode, rng):
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    model = Small(rng, classes=5)
    variables = [parameter.variable for parameter in model.parameters]
    x, y = pt.tensor("x", shape=(3, 28, 28, None), dtype="float32"), pt.ivector("y")
    model.layers[2].tower.layers[4].rate = 0
    cost = training_cost(*model.training_outputs(x, Training(1, 2)), y)
    run = pytensor.function([x, y], [model(x), cost, *pytensor.grad(cost, variables)], mode=mode)
    images, labels = rng.normal(size=(3, 28, 28, 5)).astype("float32") * 60, np.array([0, 3, 4, 1, 1], "int32")
    logits, value, *gradients = map(np.asarray, run(images, labels))
    arrays = {variable.name: variable.get_value() for variable in variables}
    expected = truth.results(small_truth, arrays, images, labels)
    assert truth.distance(logits, expected.logits) < 1e-5
    assert value == pytest.approx(expected.cost, rel=1e-5)
    for variable, gradient in zip(variables, gradients, strict=True):
        assert truth.distance(gradient, expected.gradients[variable.name]) < 1e-5, variable.name


# ---- the whole network


@pytest.fixture(scope="module")
def network():
    """Return a Network of four classes, images and labels."""
    if not compiler.compiler_available():
        pytest.skip("the cpu backend needs a C compiler")
    rng = np.random.default_rng(3)
    model = GoogLeNet(rng, classes=4, dropout_rate=0)
    network = Network(model, np.zeros((3, 256, 256)), momentum_sgd, crop=False)
    images = rng.normal(size=(3, 224, 224, 2)).astype("float32") * 60
    return network, images, np.array([2, 0], "int32")


def test_step_matches_pytorch_with_same_decisions(network):
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    network, images, labels = network
    error, expected, decisions = truth.check_step(network, truth.googlenet, images, labels)
    assert error == np.mean(expected.logits.argmax(axis=0) != labels)
    # without the given decisions, float64 resolves 18 near ties differently, out of seven million units and windows
    assert expected.otherwise < 1e-5 * decisions


def test_validation_has_no_towers_and_permutes_with_images(network):
    network, images, _ = network
    logits = network.logits
    names = {variable.name for variable in logits.maker.fgraph.inputs if variable.name}
    assert "inception_5b.pool_proj.W" in names and not any(map(is_tower, names))
    np.testing.assert_array_equal(logits(images)[:, ::-1], logits(np.ascontiguousarray(images[..., ::-1])))


def test_state_has_all_arrays_and_tower_velocities(network):
    network, _, _ = network
    names = {parameter.name for parameter in network.model.parameters}
    assert network.get_state().keys() == names | {f"{name}.velocity" for name in names} | {"step"}
    assert {"aux_4a.fc.W.velocity", "aux_4d.classifier.b.velocity"} < network.state.keys()


def test_export_computes_validation_outputs_without_towers(network, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    network, images, _ = network
    arrays = {variable.name: variable.get_value() for variable in network.parameters}
    weights, path = Weights("googlenet", arrays, np.zeros((3, 256, 256), "float32")), tmp_path / "net.onnx"
    save(weights, path)
    graph = onnx.load(path).graph
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.transpose(3, 0, 1, 2)})
    ours = network.logits(images).T
    np.testing.assert_allclose(logits, ours, rtol=0, atol=1e-4 * abs(ours).max())
    again = load(path)
    path.unlink()
    arrays = {name: array for name, array in arrays.items() if not name.startswith("aux")}
    assert same_bits(again.arrays, arrays) and list(again.arrays) == list(arrays) and again.classes == 4


def test_fine_tuning_resets_all_three_classifiers():
    weights = Weights("googlenet", {p.name: np.zeros(p.shape, "float32") for p in GoogLeNet(None, 4).parameters})
    data, config = SimpleNamespace(classes=9, class_names=None), SimpleNamespace(new_layers=("auto",))
    model = GoogLeNet(None, 9)
    assert new_layers(weights, model, config, data) == model.classifiers
    without = {name: array for name, array in weights.arrays.items() if not name.startswith("aux")}
    new = new_layers(weights._replace(arrays=without), model, config, data)
    assert set(new) == {name for name in model.weight_layers if name.startswith("aux")} | {*model.classifiers}
    config.new_layers = ("aux_4a", "fc22")
    assert new_layers(weights, model, config, data) == ("aux_4a.conv", "aux_4a.fc", "aux_4a.classifier", "fc22")


def test_models_are_registered():
    assert MODELS["googlenet"] is GoogLeNet
