"""The native weight format: checkpoints load without velocities, exports are bit-exact, invalid files are refused."""

import json
import zlib

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from alexnet import pretrained
from alexnet.pretrained import WeightsError, native
from alexnet.run import checkpoint_format
from tests.small_alexnet import narrow, same_bits, weights_of_narrow

__all__ = ["narrow"]


def save_checkpoint(folder, iteration, weights, **metadata):
    """Save a checkpoint as a run does: weights, velocities, step and mean image; return its path."""
    velocities = {f"{name}.velocity": 0 * array + 1 for name, array in weights.arrays.items()}
    arrays = weights.arrays | velocities | {"step": np.int64(iteration), "mean": weights.mean}
    path = checkpoint_format.snapshot_path(folder, iteration)
    entries = {"model": weights.model, "classes": weights.classes, "class_names": None, "config": {}}
    checkpoint_format.save(path, arrays, entries | metadata)
    return path


def refused(path, sentence):
    with pytest.raises(WeightsError, match=sentence) as caught:
        pretrained.load(path)
    assert "\n" not in str(caught.value)


def test_export_round_trip_is_bit_exact(narrow, tmp_path):
    scale = (1 / 3, 0.5, 2.0)
    weights = weights_of_narrow(class_names=tuple(f"größe {i}" for i in range(10)), resize="crop", scale=scale)
    pretrained.save(weights, tmp_path / "new" / "w.safetensors")
    loaded = pretrained.load(tmp_path / "new" / "w.safetensors")
    assert same_bits(loaded.arrays, weights.arrays)
    assert loaded.mean.tobytes() == weights.mean.tobytes()
    assert (loaded.model, loaded.class_names, loaded.resize) == ("alexnet", weights.class_names, "crop")
    assert list(loaded.arrays) == list(weights.arrays)
    assert loaded.scale == tuple(map(float, np.float32(scale)))


def test_exports_are_reproducible_and_keep_the_origin(narrow, tmp_path):
    weights = weights_of_narrow(class_names=tuple("abcdefghij"), origin="alexnet of net.caffemodel, with its own mean")
    for folder in "abcde":
        pretrained.save(weights, tmp_path / folder / "w.safetensors")
    loaded = pretrained.load(tmp_path / "a" / "w.safetensors")
    assert loaded.origin == weights.origin
    pretrained.save(loaded, tmp_path / "again.safetensors")
    files = [tmp_path / folder / "w.safetensors" for folder in "abcde"]
    assert len({file.read_bytes() for file in (*files, tmp_path / "again.safetensors")}) == 1
    assert str(tmp_path).encode() not in files[0].read_bytes()
    with safe_open(files[0], framework="numpy") as file:         # the file is one of safetensors
        assert all((file.get_tensor(name) == array).all() for name, array in weights.arrays.items())


def test_newest_checkpoint_of_a_run_is_read(narrow, tmp_path):
    weights = weights_of_narrow()
    save_checkpoint(tmp_path, 3, weights)
    newer = save_checkpoint(tmp_path, 20, weights._replace(arrays={n: 2 * a for n, a in weights.arrays.items()}))
    loaded = pretrained.load(tmp_path)
    np.testing.assert_array_equal(loaded.arrays["conv1.W"], 2 * weights.arrays["conv1.W"])
    assert loaded.origin == f"alexnet of {tmp_path.name}/{newer.name}"
    assert (loaded.resize, loaded.class_names) == ("squash", None)
    assert loaded.arrays.keys() == weights.arrays.keys()
    newer.write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over"):
        assert "checkpoint_00000003" in pretrained.load(tmp_path).origin


def test_velocities_are_not_read(narrow, tmp_path):
    path = save_checkpoint(tmp_path, 1, weights_of_narrow())
    content = path.read_bytes()
    ones = np.ones(12 * 12, "float32").tobytes()             # of fc7.W
    assert content.count(ones) >= 1
    path.write_bytes(content.replace(ones, ones[:-1] + b"\0"))
    pretrained.load(path)
    with pytest.raises(checkpoint_format.CheckpointError, match="is damaged"):
        checkpoint_format.load(path)


def test_a_flipped_bit_in_the_weights_is_refused(narrow, tmp_path):
    weights = weights_of_narrow()
    path = save_checkpoint(tmp_path, 1, weights)
    last = weights.arrays["fc8.W"].tobytes()
    path.write_bytes(path.read_bytes().replace(last, bytes([last[0] ^ 1]) + last[1:]))
    refused(path, r"is damaged: fc8\.W is not as it was saved")


@pytest.mark.parametrize("metadata, sentence", [
    ({"model": "vgg"}, "holds a network 'vgg'; there are .*alexnet"),
    ({"model": ["alexnet"]}, r"holds a network \['alexnet'\]; there are"),
    ({"model": {}}, "holds a network {}; there are"),
    ({"model": "bvlc_alexnet"}, r"fc8\.b must hold|must have shape"),
    ({"classes": 10**12}, "declares 1000000000000 classes, its network has 10"),
    ({"classes": "many"}, "declares 'many' classes, its network has 10"),
    ({"class_names": 5}, "the class names must be a list of texts"),
    ({"class_names": [1] * 10}, "the class names must be a list of texts"),
    ({"class_names": ["one"]}, "names 1 classes, its network has 10"),
    ({"scale": [1, 0, 1]}, r"has scale \[1, 0, 1\]; it must be one positive number for each of 3 channels"),
    ({"scale": "abc"}, "has scale 'abc'; it must be one positive"), ({"origin": 7}, "has an origin that is no text"),
    ({"resize": ["squash"]}, r"has resize \['squash'\]; there are squash, crop"),
])
def test_hostile_metadata_is_refused(narrow, tmp_path, metadata, sentence):
    refused(save_checkpoint(tmp_path, 1, weights_of_narrow(), **metadata), sentence)


@pytest.mark.parametrize("change, sentence", [
    ({"mean": np.zeros((256, 256, 3), "float32")}, r"mean image is float \(3, 256, 256\), got float32 \(256, 256, 3\)"),
    ({"mean": np.full((3, 256, 256), np.nan, "float32")}, "the mean image holds values outside 0 to 255"),
    ({"conv1.W": np.zeros((3, 5, 5, 4), "float32")}, r"conv1\.W must have shape \(3, 11, 11, 4\), got \(3, 5, 5, 4\)"),
    ({"conv3.b": np.zeros(8)}, r"conv3\.b must be float32, got float64"),
    ({"conv3.b": np.full(8, np.inf, "float32")}, r"conv3\.b holds values that are not finite"),
    ({"fc8.b": np.zeros((), "float32")}, r"fc8\.b must hold one value for each of 1 to 100000 classes, got shape \(\)"),
    ({"fc8.b": None}, r"fc8\.b must hold one value for each of 1 to 100000 classes, got nothing"),
    ({"fc6.b": None}, r"has no fc6\.b, which alexnet needs"),
])
def test_arrays_that_do_not_fit_are_refused(narrow, tmp_path, change, sentence):
    weights = weights_of_narrow()
    arrays = {n: a for n, a in (weights.arrays | {"mean": weights.mean} | change).items() if a is not None}
    checkpoint_format.save(tmp_path / "w.safetensors", arrays, {"model": "alexnet", "classes": 10})
    refused(tmp_path / "w.safetensors", sentence)


def test_too_many_classes_are_refused(narrow, tmp_path):
    weights = weights_of_narrow()
    arrays = weights.arrays | {"fc8.b": np.zeros(200_000, "float32")}
    checkpoint_format.save(tmp_path / "w.safetensors", arrays, {"model": "alexnet", "classes": 200_000})
    refused(tmp_path / "w.safetensors", "must hold one value for each of 1 to 100000 classes")


def test_safetensors_of_others_are_refused(tmp_path):
    save_file({"W": np.zeros(3, "float32")}, tmp_path / "w.safetensors", {"format": "pt"})
    refused(tmp_path / "w.safetensors", "holds an unknown network .1 tensors: W")
    with pytest.raises(checkpoint_format.CheckpointError, match="no checkpoint of a run: it has no record$"):
        checkpoint_format.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("record", [
    "[" * 100_000, "3", "{}", '{"version": 1}', '{"version": 1, "metadata": 3, "arrays": {}}',
])
def test_a_record_that_is_none_is_refused(tmp_path, record):
    header = {"record": record, "record_crc32": f"{zlib.crc32(record.encode()):08x}"}
    save_file({"W": np.zeros(3, "float32")}, tmp_path / "w.safetensors", header)
    refused(tmp_path / "w.safetensors", "is no checkpoint of a run: its record is not one")


def test_bfloat16_is_refused(narrow, tmp_path):
    record = json.dumps({"version": 1, "metadata": {"model": "alexnet", "classes": 2}, "arrays": {}})
    entries = {"record": record, "record_crc32": f"{zlib.crc32(record.encode()):08x}"}
    header = json.dumps({
        "__metadata__": entries, "fc8.b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(path, "damaged|float32")


def test_checkpoint_without_model_is_refused(tmp_path):
    checkpoint_format.save(tmp_path / "w.safetensors", {"W": np.zeros(3, "float32")}, {})
    refused(tmp_path / "w.safetensors", "has no model in its metadata")


def test_folder_without_loadable_checkpoint_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="holds no checkpoint"):
        native.load(tmp_path)
    (tmp_path / "checkpoint_00000001.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over"):
        refused(tmp_path, "none of the 1 checkpoints in .* loads")
