"""The filters of the first layer as a grid of RGB tiles."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from alexnet.plots.style import PNG, literal, new_figure, saved, shortened

MOST_COLUMNS = 3                        # maximum panels per row


def filters(weights: np.ndarray, path: Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Plot filters (3, row, column, n) as a grid of tiles, each scaled to its maximum; returns the paths."""
    grid = mosaic(weights)
    figure = new_figure(8, 8 * grid.shape[0] / grid.shape[1] + 0.6)
    show(figure.subplots(), grid)
    _, rows, columns, n = weights.shape
    figure.suptitle(f"The {n} filters of the first layer, {rows}×{columns} pixels (grey: 0; each over its own range)")
    return saved(figure, path, formats)


def filters_of_runs(weights: Mapping[str, np.ndarray], path: Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Plot the filters of several runs, one panel per run; returns the paths.

    Args:
        weights: name of the run -> filters (3, row, column, n).
    """
    across = min(math.ceil(math.sqrt(len(weights))), MOST_COLUMNS)
    down = math.ceil(len(weights) / across)
    figure = new_figure(4.5 * across, 3.4 * down + 0.5)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, each) in zip(panels, weights.items(), strict=False):
        show(axes, mosaic(each))
        axes.set_title(literal(shortened(name)), fontsize=10)
    figure.suptitle("The filters of the first layer (grey: 0; each over its own range)")
    return saved(figure, path, formats)


def show(axes: Axes, grid: np.ndarray) -> None:
    """Show an RGB image (row, column, 3) without axes."""
    axes.imshow(grid, interpolation="nearest")
    axes.set_axis_off()


def mosaic(weights: np.ndarray) -> np.ndarray:
    """Arrange filters (3, row, column, n) in an RGB image (row, column, 3) in [0, 1], row by row, with white seams."""
    channels, rows, columns, n = weights.shape
    if channels != 3:
        raise ValueError(f"filters must have 3 input channels to be drawn, got weights of shape {weights.shape}")
    width = math.ceil(math.sqrt(1.5 * n))
    height = math.ceil(n / width)
    largest = np.abs(weights).max(axis=(0, 1, 2))
    tiles = 0.5 + 0.5 * weights / np.where(largest > 0, largest, 1)
    grid = np.ones((height * (rows + 1) - 1, width * (columns + 1) - 1, 3))
    for index in range(n):
        top, left = index // width * (rows + 1), index % width * (columns + 1)
        grid[top : top + rows, left : left + columns] = tiles[..., index].transpose(1, 2, 0)
    return grid
