"""Options that complete the weights: class names, mean image and the order of its channels, resize."""

import argparse
import json

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.commands._options import add_weights, class_names_of, weights_of
from alexnet.data.batch_file import DataError
from alexnet.pretrained.assumptions import input_line
from tests.caffe_truth import blob
from tests.tiny import Tiny

BGR = (104.0, 116.7, 122.7)                                     # channel means of Caffe's ilsvrc_2012_mean.npy


def mean_image(channels):
    return np.broadcast_to(np.array(channels, np.float32)[:, None, None], (3, 256, 256)).copy()


@pytest.fixture
def given(tmp_path):
    """Return a function that saves weights of the tiny network and returns the Weights that some options select."""
    model = Tiny(np.random.default_rng(0), 3)
    arrays = {parameter.name: parameter.variable.get_value() for parameter in model.parameters}
    pretrained.save(pretrained.Weights("tiny", arrays), tmp_path / "w.safetensors")

    def select(*options):
        parser = argparse.ArgumentParser()
        add_weights(parser)
        return weights_of(parser.parse_args(["--weights", str(tmp_path / "w.safetensors"), *map(str, options)]))

    return select


@pytest.mark.parametrize(("options", "expected", "warned"), [
    ([], BGR, True), (["--mean-order", "rgb"], BGR, False), (["--mean-order", "bgr"], BGR[::-1], False),
])
def test_mean_image_in_bgr_order_is_noticed(given, tmp_path, capsys, options, expected, warned):
    np.save(tmp_path / "mean.npy", mean_image(BGR).astype(np.float64))
    weights = given("--mean", tmp_path / "mean.npy", *options)
    np.testing.assert_allclose(weights.mean.mean(axis=(1, 2)), expected, rtol=1e-5)
    note = "note: the channel means of the mean image rise: 104.0, 116.7, 122.7; those of RGB photographs fall, so it "
    assert (note in capsys.readouterr().err) == warned


@pytest.mark.parametrize("channels", [BGR[::-1], (110, 110, 110), (111.6, 113.2, 120.6)])       # the last: SVHN's
def test_usual_mean_images_are_not_noted(given, tmp_path, capsys, channels):
    np.save(tmp_path / "mean.npy", mean_image(channels))
    given("--mean", tmp_path / "mean.npy")
    assert capsys.readouterr().err == ""


def test_binaryproto_is_a_mean_image_in_bgr_order(given, tmp_path, capsys):
    (tmp_path / "mean.binaryproto").write_bytes(blob(mean_image(BGR)[None]))
    for options, expected in (([], BGR[::-1]), (["--mean-order", "bgr"], BGR[::-1]), (["--mean-order", "rgb"], BGR)):
        weights = given("--mean", tmp_path / "mean.binaryproto", *options)
        np.testing.assert_allclose(weights.mean.mean(axis=(1, 2)), expected, rtol=1e-5)
    assert capsys.readouterr().err == ""


def test_input_line_states_what_is_assumed(given, tmp_path):
    np.save(tmp_path / "mean.npy", mean_image(BGR[::-1]))
    assert input_line(given("--resize", "crop")) == (
        "input: RGB, grey levels 0 to 255, no mean image; central squares resized to 256 x 256")
    assert input_line(given("--mean", tmp_path / "mean.npy")) == (
        "input: RGB, grey levels 0 to 255, minus the mean values R 122.7, G 116.7, B 104.0; "
        "whole images squashed to 256 x 256")


@pytest.mark.parametrize("text", [
    "cat\ndog, hound\nn01 owl\n", "\ufeffcat\r\ndog, hound\r\nn01 owl",
    json.dumps(["cat", "dog, hound", "n01 owl"]),
    json.dumps({"format": 1, "class_names": ["cat", "dog, hound", "n01 owl"]}),
    json.dumps({"1": "dog, hound", "0": "cat", "2": ["n01", "owl"]}),
])
def test_class_names_are_lines_or_json(given, tmp_path, text):
    file = tmp_path / "names"
    file.write_text(text, encoding="utf-8", newline="")
    assert given("--class-names", file).class_names == ("cat", "dog, hound", "n01 owl")


@pytest.mark.parametrize(("content", "reason"), [
    (b"cat\ndog\n", "holds 2 class names, and the weights have 3 classes"),
    (b"cat\n\nowl\n", "has no name for class 1"),
    (b"[1, 2, 3]", "is no list of class names: expected a name on each line"),
    (b'{"a": 1}', "is no list of class names: expected a name on each line"),
    (b"[", "is no list of class names: Expecting value"),
    (b"\xff\xfe\x00", "is no list of class names: 'utf-8' codec"),
])
def test_other_class_names_are_refused(tmp_path, content, reason):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        class_names_of(tmp_path / "names", 3)
