"""Weight files of every format are detected by content; anything else is refused with a one-sentence error."""

import gzip
import io
import os
import pickle

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.pretrained import WeightsError, native, upstream
from tests.small_alexnet import narrow, same_bits, weights_of_narrow

__all__ = ["narrow"]


def refused(path, sentence):
    with pytest.raises(WeightsError, match=sentence) as caught:
        pretrained.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("begins, kind", [
    (b"\x40\0\0\0\0\0\0\0{}", "native"), (b"\x80\x02\0\0\0\0\0\0{", "native"), (b"PK\x03\x04", "upstream"),
    (b"PK\x05\x06", "upstream"), (b"\x08\x03\x12\x07pytorch", "onnx"), (b"\x0a\x07AlexNet", "caffe"),
    (b"\xa2\x06\x10", "caffe"),
])
def test_file_format_is_detected_from_first_bytes(tmp_path, begins, kind):
    (tmp_path / "weights.txt").write_bytes(begins)
    assert pretrained.format_of(tmp_path / "weights.txt") == kind


@pytest.mark.parametrize("names, kind", [
    (["checkpoint_00000007.safetensors", "log.txt"], "native"), (["W_0_65.npy"], "upstream"),
    (["weights/W0_1_5.npy", "misc/img_mean.npy"], "upstream"), (["run/checkpoint_00000007.safetensors"], "native"),
    (["W_0_65.npy", "older/W_0_60.npy"], "upstream"),
])
def test_folder_format_is_detected_from_file_names(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert pretrained.format_of(tmp_path) == kind


@pytest.mark.parametrize("names, sentence", [
    ([], "is a folder without checkpoints of a run and without theano_alexnet's arrays"),
    (["train_labels.npy", "alexnet.onnx"], "weights of other kinds are named by their file"),
    (["a/W_0_65.npy", "b/W_0_65.npy"], "is a folder without"),
    (["W_0_65.npy", "checkpoint_00000007.safetensors"], "holds checkpoints of a run and theano_alexnet's arrays"),
])
def test_a_folder_of_other_things_is_refused(tmp_path, names, sentence):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path, sentence)


def test_folders_named_as_arrays_are_refused(tmp_path):
    (tmp_path / "W_0_65.npy").mkdir()
    refused(tmp_path, "has no file of theano_alexnet's arrays")


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


OTHERS = {
    "empty": (b"", "is empty"),
    "pickle of protocol 2": (pickle.dumps([1], 2), "is a pickle that torch.save did not write, which is never read"),
    "pickle of protocol 5": (pickle.dumps([1], 5), "is a pickle that torch.save did not write, which is never read"),
    "half of an old PyTorch file": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "is damaged"),
    "one array": (npy(), "has no format that is read"),
    "gzip": (gzip.compress(b"W"), "has no format that is read: .*; unpack other archives first"),
    "text": (b"W_0_65.npy\n", "has no format that is read: a run's folder or safetensors, theano_alexnet's"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "is a zip without theano_alexnet's arrays"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_files_of_other_things_are_refused(tmp_path, what):
    content, sentence = OTHERS[what]
    (tmp_path / "weights").write_bytes(content)
    refused(tmp_path / "weights", sentence)


def test_missing_and_special_files_are_refused(tmp_path):
    refused(tmp_path / "weights", "there are no weights")
    refused("~no-such-user/weights", "there are no weights ~no-such-user")
    os.mkfifo(tmp_path / "pipe")                 # reading it would block forever
    refused(tmp_path / "pipe", "is neither a file nor a folder")
    refused("/dev/zero", "is neither a file nor a folder")


def test_random_bytes_are_refused(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "weights"
    heads = (b"", b"PK\x03\x04", b"\x08\x03", b"\x0a\x04", b"\x40\0\0\0\0\0\0\0{")
    for turn in range(100):
        path.write_bytes(heads[turn % len(heads)] + rng.bytes(int(rng.integers(1, 300))))
        refused(path, "weights")


def test_upstream_options_are_refused_for_other_formats(narrow, tmp_path):
    pretrained.save(weights_of_narrow(), tmp_path / "w.safetensors")
    for choice in ({"unflipped": True}, {"epoch": 0}):
        with pytest.raises(WeightsError, match="are choices about theano_alexnet's sets, and .* is none"):
            pretrained.load(tmp_path / "w.safetensors", **choice)


@pytest.mark.parametrize("kind, name", [(native, "w.safetensors"), (upstream, "w.zip"), (upstream, "w")])
def test_1000_unnamed_classes_get_imagenet_names(narrow, tmp_path, kind, name):
    kind.save(weights_of_narrow(1000), tmp_path / name)
    weights = pretrained.load(tmp_path / name)
    assert weights.class_names == pretrained.imagenet_names()
    assert weights.origin.endswith("; its 1000 classes are taken for ILSVRC2012's")


def test_imagenet_names_are_sorted_by_wnid():
    names = pretrained.imagenet_names()
    assert (len(names), names[0], names[-1]) == (
        1000, "n01440764 tench, Tinca tinca", "n15075141 toilet tissue, toilet paper, bathroom tissue",
    )
    assert list(names) == sorted(names)


def test_saving_replaces_only_an_empty_folder(narrow, tmp_path):
    weights = weights_of_narrow()
    for name in ("w.safetensors", "w.zip", "w"):
        pretrained.save(weights, tmp_path / name)
        before = pretrained.load(tmp_path / name)
        with pytest.raises(WeightsError, match="exists already: name a new file or folder"):
            pretrained.save(weights._replace(mean=None), tmp_path / name)
        assert same_bits(pretrained.load(tmp_path / name).arrays, before.arrays)
    (tmp_path / "empty").mkdir()
    pretrained.save(weights, tmp_path / "empty")


def test_invalid_weights_are_not_saved(narrow, tmp_path):
    weights = weights_of_narrow()
    doubles = weights._replace(arrays=weights.arrays | {"fc6.b": np.zeros(12)})
    for name in ("w.safetensors", "w.zip"):
        with pytest.raises(WeightsError, match=r"the weights to be saved: fc6\.b must be float32, got float64"):
            pretrained.save(doubles, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_other_endings_are_refused(narrow, tmp_path):
    with pytest.raises(WeightsError, match=r"must end in \.safetensors, \.onnx or \.zip, or be a folder's name"):
        pretrained.save(weights_of_narrow(), tmp_path / "w.caffemodel")
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        pretrained.save(weights_of_narrow(), tmp_path / "file" / "w.zip")


def test_weights_without_a_mean_image_are_not_built(narrow):
    weights = weights_of_narrow(mean=False, origin="W")
    with pytest.raises(WeightsError, match="W comes without a mean image; give it with --mean FILE"):
        pretrained.build(weights)


def test_a_built_network_predicts_with_the_weights(narrow, tmp_path):
    upstream.save(weights_of_narrow(3), tmp_path / "set")
    weights = pretrained.load(tmp_path / "set")
    network = pretrained.build(weights, backend="numpy")
    for variable in network.parameters:
        np.testing.assert_array_equal(variable.get_value(), weights.arrays[variable.name])
    np.testing.assert_array_equal(network.mean, weights.mean)
