"""Augmentation of training batches: equal in the graph and in the loader, for any division into micro-batches."""

from types import SimpleNamespace

import numpy as np
import pytensor
import pytest

from alexnet.data.augment import draw_crop
from alexnet.data.colour import PrincipalColours
from alexnet.data.dataset import BatchReader, Request, Segment, Split, open_dataset
from alexnet.training.loop import Position, training_batches
from alexnet.training.network import ImageInputs
from tests import tiny

COLOURS = PrincipalColours(np.array([0.2, 0.02, 0.005]), np.eye(3))
RESIZED = {"random_resized_crop": 0.08, "use_data_layer": "false"}
RUNS = {"backend": "numpy", "n_iterations": 4, "dropout_rate": 0, "learning_rate": 0.02}


def batches(rank=0, position=Position(), colours=COLOURS, **settings):
    """Return the training batches of an epoch of 5 steps of 4 images, of worker `rank` of 2."""
    config = tiny.settings("none", "none", **settings)
    split = Split(("a",), np.array([40]), np.zeros(40, np.int32)).shard(rank, 2)
    run = SimpleNamespace(
        config=config, network=SimpleNamespace(model=SimpleNamespace(image_size=227)),
        data=SimpleNamespace(train=split), rank=rank, colours=colours,
    )
    return list(training_batches(run, position)[0])


def drawn(these):
    """Return the augmentation of all images of some batches: arrays whose last axis is that of the images."""
    parts = [(*batch.crop, batch.colour_offsets) for batch in these]
    return [np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)]


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("settings", [{}, {"use_data_layer": "false"}, RESIZED, {"batch_crop_mirror": "true"}])
def test_draws_depend_only_on_rank_and_iteration(settings):
    settings = {"pca_colour": 0.1} | settings
    whole = batches(**settings)
    assert_equal(drawn(batches(micro_batch_size=2, **settings)), drawn(whole))
    assert_equal(drawn(batches(position=Position(batch=3, iteration=3), **settings)), drawn(whole[3:]))
    both = [*whole, *batches(rank=1, **settings)]
    assert len({(*batch.crop.rows, *batch.crop.columns) for batch in both}) == 10
    offsets = np.concatenate([batch.colour_offsets for batch in both], axis=1)
    assert offsets.shape == (3, 40) == np.unique(offsets, axis=1).shape          # one shift for each image


def test_colours_do_not_change_the_crops():
    plain = [batch.crop for batch in batches(colours=None)]
    for one, other in zip(batches(pca_colour=0.1), plain, strict=True):
        assert_equal(one.crop, other)


def test_loader_applies_what_the_graph_does_not():
    for batch in batches(pca_colour=0.1):
        assert batch.request.crop is batch.request.colour_offsets is None
        assert len(batch.inputs(np.zeros(1))) == 6
    for batch in batches(pca_colour=0.1, **RESIZED):
        assert (batch.request.crop, batch.request.colour_offsets) == (batch.crop, batch.colour_offsets)
        assert len(batch.inputs(np.zeros(1))) == 2


# ---- pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make 24 images: 6 batches of 4."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", validation=4)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [(1, 1, 1), (0.5, 0.25, 2)])
def test_graph_and_loader_shift_colours_equally(data, mode, rng, scale):
    dataset = open_dataset(data)
    segments = (Segment(dataset.train.files[0], 0, 5),)
    crop, offsets = draw_crop(rng, 5, 227), rng.normal(0, 5, (3, 5)).astype(np.float32)
    images = np.empty((3, 256, 256, 5), np.uint8)
    pixels = np.empty((3, 227, 227, 5), np.float32)
    reader = BatchReader(dataset.mean, 227)
    reader.read(Request(segments), images)
    reader.read(Request(segments, crop, offsets), pixels)
    inputs = ImageInputs(SimpleNamespace(image_size=227), dataset.mean, True, scale, colour_offsets=True)
    graph = pytensor.function(inputs.inputs, inputs.pixels, mode=mode)(images, *crop, offsets)
    np.testing.assert_array_equal(graph, pixels * np.float32(scale)[:, np.newaxis, np.newaxis, np.newaxis])


@pytest.mark.slow
def test_run_is_equal_in_graph_and_loader(data, tmp_path):
    settings = RUNS | {"pca_colour": 1, "para_load": "false"}
    runs = [
        tiny.run(data, tmp_path, run_name=f"graph_{value}", **settings | {"use_data_layer": value})
        for value in ("true", "false")
    ]
    for ours, theirs in zip(*(tiny.final(run).values() for run in runs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert "pca_colour shifts the principal colours by " in (runs[0] / "log.txt").read_text()
    without = tiny.final(tiny.run(data, tmp_path, run_name="without", **settings | {"pca_colour": 0}))
    assert np.abs(without["conv1.W"] - tiny.final(runs[0])["conv1.W"]).max() > 2e-5


@pytest.mark.slow
def test_loader_process_resizes_the_same_crops(data, tmp_path):
    settings = RUNS | RESIZED | {"pca_colour": 0.1}
    runs = [
        tiny.run(data, tmp_path, run_name=f"loader_{value}", **settings | {"para_load": value})
        for value in ("true", "false")
    ]
    for ours, theirs in zip(*(tiny.final(run).values() for run in runs), strict=True):
        np.testing.assert_array_equal(ours, theirs)
