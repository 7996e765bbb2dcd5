"""python -m alexnet export: convert weights of any readable format to another format."""

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.__main__ import main
from tests.small_alexnet import narrow, same_bits, weights_of_narrow

__all__ = ["narrow"]


@pytest.fixture
def weights(narrow, tmp_path):
    """Return weights and the path of a file in our format that contains them."""
    weights = weights_of_narrow(class_names=tuple(f"class {i}" for i in range(10)))
    pretrained.save(weights, tmp_path / "given.safetensors")
    return weights, str(tmp_path / "given.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.onnx", "w.zip", "folder/w"])
def test_export_has_the_given_weights(weights, tmp_path, capsys, name):
    if name.endswith(".onnx"):
        pytest.importorskip("onnx", reason="the extra onnx is not installed")
    weights, given = weights
    assert main(["export", "--weights", given, "--to", str(tmp_path / name)]) == 0
    loaded = pretrained.load(tmp_path / name)
    assert same_bits(loaded.arrays, weights.arrays)
    assert (loaded.class_names, loaded.mean.tobytes()) == (weights.class_names, weights.mean.tobytes())
    parameters = sum(array.size for array in weights.arrays.values())
    assumed, line = capsys.readouterr().out.splitlines()
    assert assumed.startswith("input: RGB, grey levels 0 to 255, minus the mean ")
    assert line.startswith(f"wrote {tmp_path / name}, 0.8 MB: alexnet, {parameters:,} parameters, 10 classes, with")
    assert line.endswith(f"from alexnet of {given}")


def test_mean_image_can_be_replaced(weights, tmp_path, capsys):
    _, given = weights
    np.save(tmp_path / "other.npy", np.full((3, 256, 256), 7.0))
    choices = ["--mean", str(tmp_path / "other.npy"), "--to", str(tmp_path / "w.zip")]
    assert main(["export", "--weights", given, *choices]) == 0
    assert (pretrained.load(tmp_path / "w.zip").mean == 7).all()
    assert capsys.readouterr().out.endswith("; mean image other.npy instead\n")


def test_upstream_options_filters_and_epoch_are_applied(weights, tmp_path):
    weights, given = weights
    for epoch, arrays in ((60, weights.arrays), (65, {name: -array for name, array in weights.arrays.items()})):
        pretrained.upstream.save(weights._replace(arrays=arrays), tmp_path / f"set{epoch}", epoch)
    for file in (tmp_path / "set65").glob("*_65.npy"):
        file.rename(tmp_path / "set60" / file.name)
    (tmp_path / "set60" / "weights.json").unlink()
    to = tmp_path / "w.safetensors"
    choices = ["--unflipped", "--epoch", "60", "--to", str(to)]
    assert main(["export", "--weights", str(tmp_path / "set60"), *choices]) == 0
    conv1 = pretrained.load(to).arrays["conv1.W"]
    np.testing.assert_array_equal(conv1, weights.arrays["conv1.W"][:, ::-1, ::-1])


@pytest.mark.parametrize("arguments, sentence", [
    (["--to", "{}/given.safetensors"], "exists already: name a new file or folder, or remove it first"),
    (["--to", "{}/w.pth"], "must end in .safetensors, .onnx or .zip, or be a folder's name without an ending"),
    (["--to", "{}/w.zip", "--epoch", "3"], "are choices about theano_alexnet's sets, and"),
    (["--to", "{}/w.zip", "--mean", "{}/none.npy"], "none.npy is missing"),
])
def test_invalid_export_is_refused_in_one_sentence(weights, tmp_path, capsys, arguments, sentence):
    _, given = weights
    before = sorted(tmp_path.iterdir())
    assert main(["export", "--weights", given, *(text.format(tmp_path) for text in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("alexnet export: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
