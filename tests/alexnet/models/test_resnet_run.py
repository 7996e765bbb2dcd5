"""A network of ResNet's layer types is trained, resumed, evaluated, exported and fine-tuned."""

import json

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.__main__ import main
from alexnet.models import MODELS, Model
from alexnet.nn import AveragePool, BatchNorm, Conv, Dense, Flatten, MaxPool
from alexnet.nn.residual import Bottleneck
from alexnet.run.recorder import read_records
from tests.small_alexnet import same_bits
from tests.tiny import final, make_data, resume_copy, run

pytestmark = pytest.mark.slow

SETTINGS = {"model": "residual_blocks", "para_load": "false", "n_epochs": 1}


class Blocks(Model):
    """ResNet's layer types, on 14 x 14 pixels."""

    image_size = 224

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=7, stride=4, pad=3, std=0.01, bias=None), BatchNorm(4), MaxPool(3, 2, pad=1),
            Bottleneck(rng, "conv2.1", 4, 2, 2), Bottleneck(rng, "conv2.2", 8, 2),
            AveragePool(14, 1), Flatten(), Dense(rng, 8, classes, relu=False),
        )


@pytest.fixture(scope="module", autouse=True)
def blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "residual_blocks", Blocks)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "set", train=16, validation=8, classes=5)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Return the folder of a run of four steps, with checkpoints at the second and fourth."""
    output = tmp_path_factory.mktemp("trained")
    return run(data, output, snapshot_iterations=2, keep_snapshots="null", **SETTINGS)


def test_checkpoint_has_running_statistics_without_velocities(trained):
    parameters = Blocks(None).parameters
    running = {each.name for each in parameters if each.running}
    velocities = {f"{each.name}.velocity" for each in parameters if not each.running}
    arrays = final(trained)
    assert arrays.keys() == {each.name for each in parameters} | velocities | {"step", "mean"}
    assert {"bn1.mean", "conv2.1.projection_bn.variance"} < running
    assert all(np.any(arrays[name] != (1 if name.endswith("variance") else 0)) for name in running)


def test_resume_is_bit_exact(trained, data, tmp_path):
    folder = resume_copy(trained, 2, data, tmp_path, **SETTINGS)
    assert same_bits(final(folder), final(trained))


def test_every_export_format_evaluates_the_same(trained, data, tmp_path, capsys):
    """Running statistics survive every export format bit for bit."""
    found = tmp_path / "found.json"
    (own,) = (record for record in read_records(trained) if record["kind"] == "validation")
    weights = pretrained.load(trained)
    for ending in ("safetensors", "onnx"):
        if ending == "onnx":
            pytest.importorskip("onnx", reason="the extra onnx is not installed")
        path = str(tmp_path / f"exported.{ending}")
        assert main(["export", "--weights", str(trained), "--to", path]) == 0
        assert same_bits(pretrained.load(path).arrays, weights.arrays)
        assert main(["evaluate", "--weights", path, "--data", str(data), "--json", str(found)]) == 0
        assert json.loads(found.read_text())["cost"] == pytest.approx(own["cost"], rel=1e-5)
    capsys.readouterr()


def test_onnx_graph_computes_our_logits(trained, tmp_path, rng, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    path = tmp_path / "exported.onnx"
    assert main(["export", "--weights", str(trained), "--to", str(path)]) == 0
    weights = pretrained.load(trained)
    images = rng.integers(0, 256, (3, 224, 224, 4)).astype("float32")
    network = pretrained.build(weights, crop=False)
    ours = network.logits(images - weights.mean[:, 16:240, 16:240, np.newaxis])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.transpose(3, 0, 1, 2)})
    np.testing.assert_allclose(logits.T, ours, rtol=0, atol=1e-5 * abs(ours).max())
    capsys.readouterr()


def test_fine_tuning_keeps_the_statistics_of_frozen_layers(trained, tmp_path):
    data = make_data(tmp_path / "set", train=8, validation=4, classes=3)
    folder = run(data, tmp_path, weights=trained, frozen_layers="conv1,bn1,conv2.1", **SETTINGS)
    before, after = final(trained), final(folder)
    frozen = {name for name in before if name.startswith(("bn1.", "conv2.1.")) and not name.endswith("velocity")}
    assert same_bits({name: after[name] for name in frozen}, {name: before[name] for name in frozen})
    assert not np.array_equal(after["conv2.2.bn1.mean"], before["conv2.2.bn1.mean"])
