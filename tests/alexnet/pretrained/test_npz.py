"""A .npz of a network by Caffe's names of layers loads exactly, as one for BGR images; other files are refused."""

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.models.squeezenet import SqueezeNet
from alexnet.pretrained import WeightsError
from alexnet.pretrained.caffe import load_npz

CLASSES = 7


@pytest.fixture
def layers(rng):
    """Return {name in the file: array} of SqueezeNet with 7 classes."""
    arrays = {}
    for parameter in SqueezeNet(None, classes=CLASSES).parameters:
        layer, letter = parameter.name.rsplit(".", 1)
        shape = parameter.shape if letter == "b" else (parameter.shape[3], *parameter.shape[:3])
        name = layer.replace(".", "/").replace("conv10", "conv_final")
        arrays[f"{name}.{'bias' if letter == 'b' else 'weight'}"] = rng.random(shape, "float32")
    return arrays


def written(folder, arrays):
    np.savez(folder / "net.npz", **arrays)
    return folder / "net.npz"


def test_arrays_are_converted_exactly_for_rgb_images(tmp_path, layers):
    weights = pretrained.load(written(tmp_path, layers))
    assert (weights.model, weights.classes, weights.resize) == ("squeezenet", CLASSES, "squash")
    assert tuple(weights.mean[:, 9, 9]) == (123, 117, 104) and "BGR 104, 117, 123" in weights.origin
    np.testing.assert_array_equal(weights.arrays["conv1.W"][::-1].transpose(3, 0, 1, 2), layers["conv1.weight"])
    for ours, its in (("fire2.expand3x3", "fire2/expand3x3"), ("conv10", "conv_final")):
        np.testing.assert_array_equal(weights.arrays[f"{ours}.W"].transpose(3, 0, 1, 2), layers[f"{its}.weight"])
        np.testing.assert_array_equal(weights.arrays[f"{ours}.b"], layers[f"{its}.bias"])


@pytest.mark.parametrize(("change", "message"), [
    ({"fire2/expand1x1.bias": np.zeros(64)}, "fire2/expand1x1.bias.npy must hold float32 .64,., holds float64"),
    ({"conv1.weight": np.zeros((64, 3, 3, 3), "float32")}, "conv1.weight.npy must hold float32 .96, 3, 7, 7."),
    ({"conv1.weight": np.full((96, 3, 7, 7), np.nan, "float32")}, "conv1.W holds values that are not finite"),
    ({"conv1.bias": np.array([{}])}, "conv1.bias.npy"),
    ({"fire10/squeeze1x1.weight": np.zeros(3)}, "another network than squeezenet: it has a layer fire10/squeeze1x1"),
])
def test_other_arrays_are_refused(tmp_path, layers, change, message):
    with pytest.raises(WeightsError, match=message):
        load_npz(written(tmp_path, layers | change))


def test_a_missing_array_is_named(tmp_path, layers):
    del layers["fire9/expand3x3.bias"]
    with pytest.raises(WeightsError, match=r"has no fire9/expand3x3.bias.npy"):
        pretrained.load(written(tmp_path, layers))


def test_a_flipped_bit_is_refused(tmp_path, layers):
    path = written(tmp_path, layers)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4                  # in the values of an array; the zip has a CRC-32 of each
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        pretrained.load(path)
