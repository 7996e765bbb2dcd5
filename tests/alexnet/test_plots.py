"""Pictures: drawn from what a run leaves, legible without a run, and the pixels are the filters."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet import checkpoint, plots
from alexnet.recorder import Recorder


def record(folder, iterations=40, per_epoch=8, cost=lambda iteration: 2.3 * 0.95**iteration, validated=True):
    """A made-up run: the rate drops after half of the iterations."""
    with Recorder(folder, stream=io.StringIO()) as recorder:
        for iteration in range(1, iterations + 1):
            rate = 0.01 if iteration <= iterations / 2 else 0.001
            recorder.train_iteration(
                iteration=iteration, epoch=iteration / per_epoch, cost=cost(iteration), error=0.9 * 0.97**iteration,
                learning_rate=rate, images=8,
            )  # fmt: skip
            if validated and iteration % per_epoch == 0:
                recorder.epoch(
                    epoch=iteration // per_epoch, iteration=iteration, cost=cost(iteration), top1_error=0.5,
                    top5_error=0.125, learning_rate=rate, images=50,
                )  # fmt: skip


def size_of(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, saved = [], plots.saved
    monkeypatch.setattr(plots, "saved", lambda figure, path: (figures.append(figure), saved(figure, path))[1])
    return figures


def test_learning_curves_show_what_was_recorded(tmp_path, drawn):
    folder = tmp_path / "some run"
    record(folder)
    path = plots.learning_curves(folder)
    assert path == folder / "learning_curves.png"
    assert min(size_of(path)) > 500
    (figure,) = drawn
    cost, error = figure.axes
    assert cost.get_ylabel() == "cost (nats per image)"
    assert error.get_ylabel() == "error (% of images)"
    assert error.get_xlabel() == "epoch"
    assert figure.get_suptitle() == "some run: top-1 validation error 50.0%"
    lines = {line.get_label(): line.get_xydata() for line in (*cost.lines, *error.lines)}
    np.testing.assert_allclose(lines["training"][:, 1], [2.3 * 0.95**i for i in range(1, 41)])
    np.testing.assert_array_equal(lines["validation"][:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(lines["validation, top-1"][:, 1], [50] * 5)
    np.testing.assert_array_equal(lines["validation, top-5"][:, 1], [12.5] * 5)


def test_learning_rate_drops_are_marked_where_they_happen(tmp_path, drawn):
    record(tmp_path)
    plots.learning_curves(tmp_path)
    cost, error = drawn[0].axes
    for axes in (cost, error):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [20 / 8]
    assert [text.get_text().strip() for text in cost.texts] == ["rate 0.001"]


def test_a_long_training_curve_is_averaged(tmp_path, drawn):
    record(tmp_path, iterations=901, cost=float)
    plots.learning_curves(tmp_path)
    points = drawn[0].axes[0].lines[0].get_xydata()
    assert len(points) == 226                               # stretches of four, and the last one
    np.testing.assert_allclose(points[0], [(1 + 2 + 3 + 4) / 4 / 8, 2.5])
    np.testing.assert_allclose(points[-1], [901 / 8, 901])


def test_curves_without_validation_and_with_nan_are_drawn(tmp_path):
    record(tmp_path, validated=False, cost=lambda iteration: float("nan") if iteration > 3 else 2.0)
    size_of(plots.learning_curves(tmp_path))


def test_a_run_stopped_before_its_first_step_is_drawn_empty(tmp_path):
    record(tmp_path, iterations=0)
    size_of(plots.learning_curves(tmp_path))


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run's folder: it has no records.jsonl"):
        plots.learning_curves(tmp_path)


def test_filters_are_tiles_in_order_each_over_its_own_range(tmp_path):
    weights = np.random.default_rng(0).normal(size=(3, 11, 11, 96)).astype("float32") * np.logspace(-3, 3, 96)
    weights[..., 95] = 0
    grid = plots.mosaic(weights, 8, 12)
    assert grid.shape == (8 * 12 - 1, 12 * 12 - 1, 3)
    tile = grid[12 : 12 + 11, 24 : 24 + 11]                 # second row, third column: filter 14
    expected = 0.5 + 0.5 * np.moveaxis(weights[..., 14], 0, -1) / np.abs(weights[..., 14]).max()
    np.testing.assert_allclose(tile, expected)
    assert (grid[11] == 1).all()
    assert (grid[-11:, -11:] == 0.5).all()
    width, height = size_of(plots.filters(weights, tmp_path / "filters.png"))
    assert width > 500
    assert height > 500


def test_filters_of_another_number_of_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must see 3 channels, got weights of shape \(4, 2, 2, 5\)"):
        plots.filters(np.zeros((4, 2, 2, 5)), tmp_path / "filters.png")


def test_a_run_is_drawn_from_its_records_and_newest_checkpoint(tmp_path):
    record(tmp_path)
    assert plots.draw(tmp_path) == [tmp_path / "learning_curves.png"]
    checkpoint.save(checkpoint.snapshot_path(tmp_path, 3), {"conv1.W": np.ones((3, 5, 5, 6), dtype="float32")}, {})
    assert plots.draw(tmp_path) == [tmp_path / "learning_curves.png", tmp_path / "filters.png"]
