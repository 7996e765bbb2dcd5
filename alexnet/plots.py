"""Pictures of a run: learning curves and the filters of the first layer, as PNG files in its folder.

The only user of matplotlib; figures are drawn off screen, so no display is needed.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alexnet import checkpoint
from alexnet.recorder import read_records

POINTS = 300                            # of a training curve at most: more would be a band of noise
TRAIN, TOP1, TOP5 = "#8a9bb0", "#c8452f", "#2f6fa8"


def draw(folder):
    """Draw what the run folder has records and checkpoints for; returns the paths of the pictures.

    Raises FileNotFoundError when there are no records, CheckpointError when no checkpoint loads.
    """
    pictures = [learning_curves(folder)]
    newest = checkpoint.load_latest(folder)
    if newest is not None:
        _, arrays, _ = newest
        if "conv1.W" in arrays:
            pictures.append(filters(arrays["conv1.W"], Path(folder) / "filters.png"))
    return pictures


def learning_curves(folder):
    """Draw cost and errors over the epochs, learning-rate drops marked, from the records of a run folder.

    Returns the path of the PNG; raises FileNotFoundError when the folder has no records.
    """
    folder = Path(folder).resolve()
    train, validation = columns(folder, "train"), columns(folder, "validation")
    figure = Figure(figsize=(8, 7.5), dpi=120, layout="constrained")
    cost, error = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title(folder.name, validation))

    cost.plot(*smoothed(train, "cost"), color=TRAIN, label="training")
    cost.plot(validation["epoch"], validation["cost"], "o-", color=TOP1, markersize=4, label="validation")
    cost.set_ylabel("cost (nats per image)")
    cost.set_ylim(bottom=0)

    error.plot(*smoothed(train, "top1_error", 100), color=TRAIN, label="training, top-1")
    for column, colour in (("top1_error", TOP1), ("top5_error", TOP5)):
        label = f"validation, {column[:3]}-{column[3]}"
        error.plot(validation["epoch"], 100 * validation[column], "o-", color=colour, markersize=4, label=label)
    error.set_ylabel("error (% of images)")
    error.set_ylim(0, 100)
    error.set_xlabel("epoch")

    mark_drops(train, (cost, error))
    for axes in (cost, error):
        finish(axes)
    return saved(figure, folder / "learning_curves.png")


def filters(weights, path):
    """Draw the filters (3, row, column, n) as a grid of colour tiles, each over its own range; returns the path."""
    channels, *_, n = weights.shape
    if channels != 3:
        raise ValueError(f"filters to draw must see 3 channels, got weights of shape {weights.shape}")
    width = math.ceil(math.sqrt(1.5 * n))
    height = math.ceil(n / width)
    grid = mosaic(weights, height, width)
    figure = Figure(figsize=(8, 8 * height / width + 0.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid, interpolation="nearest")
    axes.set_axis_off()
    rows, columns_ = weights.shape[1:3]
    axes.set_title(f"The {n} filters of the first layer, {rows}×{columns_} pixels (grey: 0; each over its own range)")
    return saved(figure, path)


def mosaic(weights, height, width):
    """RGB picture (row, column, 3) in [0, 1] of the filters (3, row, column, n), row by row, with white seams."""
    _, rows, columns_, n = weights.shape
    largest = np.abs(weights).max(axis=(0, 1, 2))
    tiles = 0.5 + 0.5 * weights / np.where(largest > 0, largest, 1)
    grid = np.ones((height * (rows + 1) - 1, width * (columns_ + 1) - 1, 3))
    for index in range(n):
        top, left = index // width * (rows + 1), index % width * (columns_ + 1)
        grid[top : top + rows, left : left + columns_] = tiles[..., index].transpose(1, 2, 0)
    return grid


def columns(folder, kind):
    """The records of `kind` as arrays: field -> float array; NaN where the record has null."""
    records = [record for record in read_records(folder) if record["kind"] == kind]
    fields = ("epoch", "cost", "top1_error", "top5_error", "learning_rate")
    return {field: np.array([record.get(field) for record in records], dtype=float) for field in fields}


def smoothed(train, field, scale=1):
    """(epochs, scale * means) of equal stretches of iterations, at most POINTS of them."""
    stretch = max(1, math.ceil(len(train[field]) / POINTS))
    starts = np.arange(0, len(train[field]), stretch)
    lengths = np.diff([*starts, len(train[field])])
    return tuple(np.add.reduceat(train[name], starts) / lengths * by for name, by in (("epoch", 1), (field, scale)))


def mark_drops(train, panels):
    """A dashed line in each panel wherever the learning rate fell to half or less, with the new rate on the first."""
    rate, epoch = train["learning_rate"], train["epoch"]
    for after in 1 + np.flatnonzero(rate[1:] <= rate[:-1] / 2):
        for axes in panels:
            axes.axvline(epoch[after - 1], color="0.6", linestyle="--", linewidth=1)
        label = f" rate {rate[after]:g}"
        at = panels[0].get_xaxis_transform()
        panels[0].text(epoch[after - 1], 0.98, label, transform=at, va="top", fontsize=8, color="0.4")


def title(name, validation):
    errors = validation["top1_error"]
    return f"{name}: top-1 validation error {errors[-1]:.1%}" if errors.size else name


def finish(axes):
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def saved(figure, path):
    figure.savefig(path)
    return Path(path)
