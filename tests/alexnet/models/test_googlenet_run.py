"""A network of GoogLeNet's layer types is trained, resumed, evaluated, exported and fine-tuned."""

import json

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.__main__ import main
from alexnet.inference.predict import Predictor
from alexnet.models import MODELS, Model
from alexnet.nn import AveragePool, Conv, Dense, Dropout, Flatten, MaxPool
from alexnet.nn.inception import Inception, InceptionClassifier
from alexnet.run.recorder import read_records
from tests.hostile_images import encoded, photograph
from tests.small_alexnet import same_bits
from tests.tiny import final, make_data, resume_copy, run

pytestmark = pytest.mark.slow

SETTINGS = {"model": "blocks", "para_load": "false", "n_epochs": 1}
LAYERS = [f"inception_3a.{each}" for each in ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")]


class Blocks(Model):
    """GoogLeNet's layer types, on 14 x 14 pixels."""

    image_size = 224

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=7, stride=4, pad=3, pool=(3, 2, 1)), MaxPool(3, 2, pad=1),
            Inception(rng, "inception_3a", 4, 4, (3, 4), (2, 4), 4),
            InceptionClassifier(rng, "aux_4a", 16, classes, dropout_rate, stream=1),
            AveragePool(14, 1), Flatten(),
            Dropout(dropout_rate, stream=2), Dense(rng, 16, classes, relu=False),
        )


@pytest.fixture(scope="module", autouse=True)
def blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "blocks", Blocks)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "set", train=16, validation=8, classes=5)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Return the folder of a run of four steps, with checkpoints at the second and fourth."""
    output = tmp_path_factory.mktemp("trained")
    return run(data, output, snapshot_iterations=2, keep_snapshots="null", **SETTINGS)


def test_checkpoint_has_all_arrays_and_tower_velocities(trained):
    names = {parameter.name for parameter in Blocks(None).parameters}
    arrays = final(trained)
    assert arrays.keys() == names | {f"{name}.velocity" for name in names} | {"step", "mean"}
    assert {"aux_4a.classifier.W", "inception_3a.pool_proj.b"} < names
    assert all(np.any(arrays[f"{name}.velocity"]) for name in names if name.endswith(".W"))


def test_resume_is_bit_exact(trained, data, tmp_path):
    folder = resume_copy(trained, 2, data, tmp_path, **SETTINGS)
    assert same_bits(final(folder), final(trained))


def test_every_export_format_predicts_the_same(trained, data, tmp_path, capsys):
    """All arrays survive every export format bit for bit; ONNX omits those of the tower."""
    found, image = tmp_path / "found.json", tmp_path / "image.jpg"
    assert main(["evaluate", "--weights", str(trained), "--data", str(data), "--json", str(found)]) == 0
    (own,) = (record for record in read_records(trained) if record["kind"] == "validation")
    assert json.loads(found.read_text())["cost"] == pytest.approx(own["cost"], rel=1e-5)
    image.write_bytes(encoded(photograph(300, 280, seed=1)))
    weights = pretrained.load(trained)
    expected = Predictor(weights)(image, top=5)
    capsys.readouterr()
    for ending in ("safetensors", "onnx"):
        if ending == "onnx":
            pytest.importorskip("onnx", reason="the extra onnx is not installed")
        path = str(tmp_path / f"exported.{ending}")
        assert main(["export", "--weights", str(trained), "--to", path]) == 0
        kept = {name: each for name, each in weights.arrays.items() if ending != "onnx" or not name.startswith("aux")}
        assert same_bits(pretrained.load(path).arrays, kept)
        capsys.readouterr()
    assert main(["predict", "--weights", path, str(image), "--json"]) == 0
    assert [each["label"] for each in json.loads(capsys.readouterr().out)["top"]] == [one.label for one in expected]


def test_fine_tuning_resets_classifiers_and_keeps_frozen_block(trained, tmp_path):
    data = make_data(tmp_path / "set", train=8, validation=4, classes=3)
    folder = run(data, tmp_path, weights=trained, frozen_layers="inception_3a", **SETTINGS)
    before, after = final(trained), final(folder)
    frozen = {f"{layer}.{letter}" for layer in LAYERS for letter in "Wb"}
    assert same_bits({name: after[name] for name in frozen}, {name: before[name] for name in frozen})
    assert not frozen & {name.removesuffix(".velocity") for name in after if name.endswith(".velocity")}
    assert not np.array_equal(after["conv1.W"], before["conv1.W"])
    assert (after["aux_4a.classifier.W"].shape, after["fc4.W"].shape) == ((1024, 3), (16, 3))
    log = (folder / "log.txt").read_text()
    assert "aux_4a.classifier, fc4 are new (5 classes there, 3 here)" in log
