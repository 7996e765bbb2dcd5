"""Starting a run from trained weights, with new or frozen layers and layer learning rates, or from a checkpoint."""

import shutil

import numpy as np
import pytest

from alexnet.config.schema import ConfigError
from alexnet.data.dataset import DataError, open_dataset, resize_of
from alexnet.pretrained import Weights, save
from alexnet.pretrained.initialization import find_start
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.network import build_model
from tests import tiny

pytestmark = pytest.mark.slow

SERIAL = {"para_load": "false"}
TUNED = SERIAL | {"frozen_layers": "conv1,conv2", "layer_rates": "fc4:10,fc3:0.5", "n_iterations": 8, "n_epochs": 2}
MEAN = np.linspace(20, 200, 3 * 256 * 256, dtype=np.float32).reshape(3, 256, 256)
NAMES = ("n01440764 tench, Tinca tinca", "n01443537 goldfish", "cats")


def weights_of(classes=3, seed=5, **more):
    """Return weights of the tiny network; a run initialises new layers with a different seed."""
    model = tiny.Tiny(np.random.default_rng(seed), classes)
    arrays = {parameter.name: parameter.variable.get_value() for parameter in model.parameters}
    return Weights("tiny", arrays, **{"mean": MEAN} | more)


def start_of(config, data):
    """Return the start of a run on a data set."""
    return find_start(config, data, build_model(config, data.classes))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return exported weights of three classes; their mean image differs from the data set's."""
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save(weights_of(), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make 24 images of five classes: 6 steps of 4."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", classes=5)


@pytest.fixture(scope="module")
def tuned(data, weights, tmp_path_factory):
    """Run eight steps from the weights of three classes: one epoch and two steps."""
    output = tmp_path_factory.mktemp("tuned")
    return tiny.run(data, output, weights=weights, snapshot_iterations=4, keep_snapshots="null", **TUNED)


def final(folder):
    return checkpoint_format.load(checkpoint_format.latest(folder))


def test_frozen_layers_are_unchanged_without_velocity(tuned, weights):
    before, (after, metadata) = checkpoint_format.load(weights)[0], final(tuned)
    for name in ("conv1.W", "conv1.b", "conv2.W", "conv2.b"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert not np.array_equal(after["fc3.W"], before["fc3.W"])
    assert after["fc4.W"].shape == (8, 5)
    velocities = {name for name in after if name.endswith(".velocity")}
    assert velocities == {f"{name}.velocity" for name in ("fc3.W", "fc3.b", "fc4.W", "fc4.b")}
    assert (metadata["classes"], metadata["resize"]) == (5, "squash")


def test_log_lists_layer_settings(tuned, weights):
    log = (tuned / "log.txt").read_text()
    assert f"starting from tiny of {weights} (input: RGB, grey levels 0 to 255, minus the mean " in log
    assert ("; whole images squashed to 256 x 256): fc4 is new (3 classes there, 5 here); conv1, conv2 do not change; "
            "fc4 learns 10 × as fast; fc3 learns 0.5 × as fast\n") in log


def test_mean_of_weights_is_subtracted_and_saved(tuned, data, weights, tmp_path):
    """The result equals that on a data set with this mean, whether the graph or the loader subtracts it."""
    np.testing.assert_array_equal(final(tuned)[0]["mean"], MEAN)
    alike = shutil.copytree(data, tmp_path / "alike")
    np.save(alike / "misc" / "img_mean.npy", MEAN)
    without = tmp_path / "without.safetensors"
    save(weights_of(mean=None), without)
    expected = final(tiny.run(alike, tmp_path, weights=without, **TUNED))[0]
    assert "comes without a mean image; that of" in (tmp_path / "run" / "log.txt").read_text()
    by_loader = TUNED | {"use_data_layer": "false", "para_load": "true"}
    loaded = final(tiny.run(data, tmp_path, run_name="loader", weights=weights, **by_loader))[0]
    for arrays in (final(tuned)[0], loaded):
        for name, array in expected.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_fine_tuning_resume_is_bit_exact_without_weights(data, tuned, tmp_path):
    folder = shutil.copytree(tuned, tmp_path / "run")
    for path in checkpoint_format.snapshots(folder):
        if path != checkpoint_format.snapshot_path(folder, 4):
            path.unlink()
    tiny.run(data, tmp_path, weights="/nowhere", resume_train=folder, **TUNED)
    (arrays, metadata), (expected, others) = final(folder), final(tuned)
    assert metadata["position"] == others["position"]
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_resume_refuses_other_frozen_layers(data, tuned, tmp_path):
    folder = shutil.copytree(tuned, tmp_path / "run")
    sentence = r"saved with frozen_layers conv1, conv2, this run has conv1; weights=.* would restart from it"
    with pytest.raises(CheckpointError, match=sentence):
        tiny.run(data, tmp_path, resume_train=folder, **TUNED | {"frozen_layers": "conv1"})


def test_only_new_layers_are_not_loaded(data, weights, tmp_path):
    config = tiny.settings(data, tmp_path, weights=weights, n_iterations=1)
    start = start_of(config, open_dataset(data))
    assert {"fc4.W", "fc4.b"} & start.arrays.keys() == set() and "fc3.W" in start.arrays
    config = tiny.settings(data, tmp_path, weights=weights, new_layers="fc3,fc4")
    assert start.arrays.keys() - start_of(config, open_dataset(data)).arrays.keys() == {"fc3.W", "fc3.b"}


@pytest.mark.parametrize(
    ("theirs", "ours", "new"),
    [
        (NAMES, NAMES, False),
        (NAMES, ("n01440764", "n01443537", "cats"), False),      # the same synsets, without words
        (NAMES, ("n01440764 tench", "n01443537", "dogs"), True),
        (NAMES, ("n01443537", "n01440764", "cats"), True),       # another order
        (None, NAMES, False),
        (NAMES, None, False),
    ],
)
def test_last_layer_is_new_if_classes_differ(theirs, ours, new, tmp_path):
    data = tiny.make_data(tmp_path / "set")
    save(weights_of(class_names=theirs), tmp_path / "w.safetensors")
    config = tiny.settings(data, tmp_path, weights=tmp_path / "w.safetensors")
    start = start_of(config, open_dataset(data)._replace(class_names=ours))
    assert ("fc4.W" not in start.arrays) == new
    assert ("fc4 is new (3 other classes)" in start.describe(None)) == new


def test_different_resizing_gives_a_warning(data, tmp_path):
    save(weights_of(resize="crop"), tmp_path / "w.safetensors")
    start = start_of(tiny.settings(data, tmp_path, weights=tmp_path / "w.safetensors"), open_dataset(data))
    (warning,) = start.warnings
    assert "was trained on images resized by crop, those of" in warning and "--resize crop" in warning


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": "/nowhere"}, "weights: there are no weights /nowhere"),
        ({"model": "alexnet"}, "holds a network tiny, this run has model=alexnet; set model=tiny"),
        ({"new_layers": "fc5"}, "new_layers: there is no layer 'fc5'; there are conv1, conv2, fc3, fc4"),
        ({"layer_rates": "fc5:3"}, "layer_rates: there is no layer 'fc5'; there are conv1, conv2, fc3, fc4"),
        ({"frozen_layers": "lrn1"}, "frozen_layers: there is no layer 'lrn1'; there are conv1, conv2, fc3, fc4"),
        ({"frozen_layers": "conv1,conv2,fc3,fc4"}, "frozen_layers must leave a layer to learn, got all: conv1,"),
        ({"frozen_layers": "fc4"}, "frozen_layers: fc4 starts with new weights, so it must be trainable"),
        ({"new_layers": "none"}, "has 5; so set new_layers=fc4"),
        ({"new_layers": "fc3"}, "has 5; so set new_layers=fc3,fc4"),
    ],
)
def test_invalid_settings_fail_before_anything_is_written(changes, sentence, data, weights, tmp_path):
    with pytest.raises(ConfigError) as caught:
        tiny.run(data, tmp_path, **{"weights": weights} | changes)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_data_set_resize_is_read_from_manifest(data):
    assert open_dataset(data).resize == "squash"                 # upstream's folders have no manifest
    assert resize_of(data, {"settings": {"resize": "crop"}}) == "crop"
    with pytest.raises(DataError, match="has resize 'stretch'; must be squash or crop"):
        resize_of(data, {"settings": {"resize": "stretch"}})
