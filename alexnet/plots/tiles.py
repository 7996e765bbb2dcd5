"""Plots of the filters of the first layer as grids of RGB tiles.

Early in training the random initial weights dominate, so the change since initialisation is shown beside the filters.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from alexnet.plots.mosaic import by_change, mosaic
from alexnet.plots.style import PNG, literal, new_figure, saved, shortened

MOST_COLUMNS = 3                        # maximum panels per row


def filters(
    weights: np.ndarray, path: Path, formats: Sequence[str] = PNG, initial: np.ndarray | None = None
) -> list[Path]:
    """Plot filters (3, row, column, n) as a grid of tiles, each scaled to its maximum; returns the paths.

    Args:
        initial: the filters at initialisation. Their change is shown beside the filters, and both are sorted by it.
    """
    panels = {"now": weights}
    if initial is not None and initial.shape == weights.shape and not np.array_equal(initial, weights):
        order = by_change(weights, initial)
        panels = {"change since initialisation": (weights - initial)[..., order], "now": weights[..., order]}
    grids = {name: mosaic(each) for name, each in panels.items()}
    down, across = next(iter(grids.values())).shape[:2]
    width = 7.0
    figure = new_figure(width * len(grids), width * down / across + (1.0 if len(grids) > 1 else 0.6))
    for axes, (name, grid) in zip(figure.subplots(1, len(grids), squeeze=False).flat, grids.items(), strict=True):
        show(axes, grid)
        if len(grids) > 1:
            axes.set_title(name)
    _, rows, columns, n = weights.shape
    order_text = ", the most changed first" if len(grids) > 1 else ""
    figure.suptitle(f"{n} filters of the first layer, {rows}×{columns} pixels{order_text} (grey: 0, own range each)")
    return saved(figure, path, formats)


def filters_of_runs(
    weights: Mapping[str, np.ndarray], path: Path, formats: Sequence[str] = PNG,
    initial: Mapping[str, np.ndarray | None] | None = None,
) -> list[Path]:
    """Plot the filters of several runs, one panel per run; returns the paths.

    Args:
        weights: name of the run -> filters (3, row, column, n).
        initial: name of the run -> its filters at initialisation, or None. If all are known, the changes are shown.
    """
    before = {name: each for name, each in (initial or {}).items() if each is not None}
    changed = all(name in before and before[name].shape == each.shape for name, each in weights.items())
    if changed:
        weights = {name: (each - before[name])[..., by_change(each, before[name])] for name, each in weights.items()}
    across = min(math.ceil(math.sqrt(len(weights))), MOST_COLUMNS)
    down = math.ceil(len(weights) / across)
    figure = new_figure(4.5 * across, 3.4 * down + 0.5)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, each) in zip(panels, weights.items(), strict=False):
        show(axes, mosaic(each))
        axes.set_title(literal(shortened(name)), fontsize=10)
    what = "Change of the first layer's filters since initialisation" if changed else "Filters of the first layer"
    figure.suptitle(f"{what} (grey: 0, own range each)")
    return saved(figure, path, formats)


def show(axes: Axes, grid: np.ndarray) -> None:
    """Show an RGB image (row, column, 3) without axes."""
    axes.imshow(grid, interpolation="nearest")
    axes.set_axis_off()
