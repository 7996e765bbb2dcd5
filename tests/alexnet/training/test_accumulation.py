"""Accumulated gradients: micro-batches of a step give the results of the whole batch."""

from pathlib import Path

import numpy as np
import pytest

from alexnet.data.dataset import open_dataset
from alexnet.run import checkpoint_format
from alexnet.run.recorder import read_records
from tests import tiny

PLAIN = {"dropout_rate": 0, "para_load": "false", "batch_size": 6, "print_freq": 1, "learning_rate": 0.02}
COUNTS = "iteration", "epoch", "images"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make 30 images in files of 8: 5 batches of 6."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=30)


def run(data, output, name, **changes):
    return tiny.run(data, output, run_name=name, **PLAIN | {"n_epochs": 9} | changes)


def arrays_after(folder, iteration):
    return checkpoint_format.load(checkpoint_format.snapshot_path(folder, iteration))[0]


def assert_close(folder, other, iteration, tolerance):
    """Compare the checkpoints of an iteration, relative to the largest value of each array."""
    arrays, others = (arrays_after(each, iteration) for each in (folder, other))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        scale = max(1e-6, np.abs(others[name]).max())
        np.testing.assert_allclose(array / scale, others[name] / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_of_a_plan_are_its_batches(data, parts):
    split = open_dataset(data).train.shard(1, 2)
    order = [2, 0, 3, 1]
    whole, divided = split.plan(6, order), split.plan(6, order, parts=parts)
    assert len(divided) == parts * len(whole)
    for step, (segments, labels) in enumerate(whole):
        pieces = divided[step * parts:(step + 1) * parts]
        assert [len(part) for _, part in pieces] == [6 // parts] * parts
        np.testing.assert_array_equal(np.concatenate([part for _, part in pieces]), labels)
        assert images_of(segment for segments, _ in pieces for segment in segments) == images_of(segments)


def images_of(segments):
    return [(Path(segment.path).name, image) for segment in segments for image in range(segment.start, segment.stop)]


@pytest.mark.slow
def test_micro_batches_match_the_whole_batch(data, tmp_path, backend):
    settings = {"backend": backend, "n_iterations": 20, "snapshot_iterations": 1, "keep_snapshots": "null"}
    whole = run(data, tmp_path, "whole", **settings)
    for size in (2, 3):
        parts = run(data, tmp_path, f"parts{size}", micro_batch_size=size, **settings)
        assert_close(parts, whole, 1, 1e-6)
        assert_close(parts, whole, 20, 1e-5)
        for ours, theirs in zip(read_records(parts), read_records(whole), strict=True):
            if ours["kind"] == "train":
                assert [ours[field] for field in COUNTS] == [theirs[field] for field in COUNTS]
                means = [[record[field] for field in ("cost", "top1_error")] for record in (ours, theirs)]
                np.testing.assert_allclose(*means, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [
    {"clip_norm": 0.05}, {"update": "lars", "learning_rate": 0.5}, {"ema_decay": 0.9}, {"label_smoothing": 0.1},
    {"use_data_layer": "false"}, {"batch_crop_mirror": "true"}, {"pca_colour": 1},
    {"random_resized_crop": 0.08, "use_data_layer": "false", "pca_colour": 1},
], ids=lambda recipe: next(iter(recipe)))
def test_micro_batches_match_with_other_recipes(data, tmp_path, recipe):
    settings = {"backend": "numpy", "n_iterations": 3} | recipe
    whole = run(data, tmp_path, "whole", **settings)
    assert_close(run(data, tmp_path, "parts", micro_batch_size=2, **settings), whole, 3, 1e-5)


@pytest.mark.slow
def test_resume_is_bit_exact_with_dropout(data, tmp_path):
    settings = {"dropout_rate": 0.5, "micro_batch_size": 2, "backend": "numpy", "n_iterations": 8}
    straight = run(data, tmp_path, "straight", snapshot_iterations=3, keep_snapshots="null", **settings)
    third = checkpoint_format.snapshot_path(straight, 3)
    resumed = run(data, tmp_path, "resumed", resume_train=third, **settings)
    expected, found = tiny.final(straight), tiny.final(resumed)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    with_whole = run(data, tmp_path, "whole", resume_train=third, **settings | {"micro_batch_size": "null"})
    assert tiny.final(with_whole)["step"] == 8   # the batches are the same, so a run may change its micro-batches
