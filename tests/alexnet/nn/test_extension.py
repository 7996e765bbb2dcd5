"""A layer and a model outside the package: summary, training, export to ONNX and import of the exported file."""

import sys

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.__main__ import main
from alexnet.config import ConfigError
from alexnet.models import MODELS, Model, model_class
from alexnet.nn import Conv, Dense, Dropout, Flatten, Layer, Parameter, Step
from alexnet.pretrained import Weights, WeightsError
from tests.small_alexnet import same_bits
from tests.tiny import make_data, run

NAME = f"{__name__}:Toy"


class Scale(Layer):
    """Multiplies each channel by a parameter, (channels, 1, 1)."""

    kind = "scale"

    def __init__(self, channels):
        self.factor = Parameter(np.full((channels, 1, 1), 0.5), "factor")
        self.parameters = (self.factor,)

    def __call__(self, x, training=None):
        return x * self.factor.variable.dimshuffle(0, 1, 2, "x")

    def describe(self, shape):
        yield self.row(shape, macs=int(np.prod(shape)))

    def steps(self):
        yield Step("Mul", parameters=("factor",))


class Toy(Model):
    """Convolution, Scale and two dense layers."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=11, stride=16, pool=(3, 2)), Scale(4), Flatten(),
            Dense(rng, 4 * 6 * 6, 6), Dropout(dropout_rate), Dense(rng, 6, classes, relu=False),
        )


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Make this module importable by name, and remove its model from the registry afterwards."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Toy.__module__])
    yield
    MODELS.pop(NAME, None)


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    arrays = {parameter.name: parameter.variable.get_value() for parameter in Toy(rng, 3).parameters}
    arrays["scale2.factor"] = rng.random((4, 1, 1), "float32")
    return Weights(NAME, arrays, np.full((3, 256, 256), 110, "float32"))


def test_summary_includes_the_layer(capsys):
    assert main(["summary", "--model", NAME, "--classes", "3"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["scale2"] == ["scale2", "4", "×", "6", "×", "6", "4", "144"]
    assert rows["total"][1] == f"{4 * 363 + 4 + 4 + 144 * 6 + 6 + 6 * 3 + 3:,}"


def test_training_changes_the_layer_and_its_run_exports(tmp_path, capsys):
    data = make_data(tmp_path / "set", train=8, validation=4)
    folder = run(data, tmp_path, model=NAME, para_load="false", n_epochs=1)
    MODELS.pop(NAME)
    given, to = str(folder), str(tmp_path / "toy.safetensors")
    assert main(["export", "--weights", given, "--to", to]) == 2
    assert f"holds a network '{NAME}'; there are " in capsys.readouterr().err
    assert main(["export", "--weights", given, "--to", to, "--model", NAME]) == 0
    factor = pretrained.load(to).arrays["scale2.factor"]
    assert factor.shape == (4, 1, 1) and not (factor == 0.5).any()


def test_onnx_export_computes_the_same_and_loads_back(weights, tmp_path, rng):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert model_class(NAME) is Toy
    path = tmp_path / "toy.onnx"
    pretrained.save(weights, path)
    assert same_bits(pretrained.load(path).arrays, weights.arrays)
    images = rng.integers(0, 256, (3, 227, 227, 2)).astype("float32")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.transpose(3, 0, 1, 2)})
    network = pretrained.build(weights, crop=False)
    expected = network.logits(images - 110).T
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_weights_of_an_unknown_model_import_nothing(weights, tmp_path):
    model_class(NAME)
    pretrained.save(weights, tmp_path / "toy.safetensors")
    MODELS.pop(NAME)
    with pytest.raises(WeightsError, match="if you trust it, give --model"):
        pretrained.load(tmp_path / "toy.safetensors")


@pytest.mark.parametrize("name, message", [
    ("toy", "model: there is no network 'toy'"), ("os:system", "must name a subclass of alexnet.models.Model"),
    ("nowhere:Toy", "No module named 'nowhere'"),
])
def test_what_is_no_model_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        model_class(name)
