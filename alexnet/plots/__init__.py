"""Plots of runs as PNG or SVG: learning curves, time split, filters of the first layer.

    records   records of the runs as arrays          curves   cost and errors of one or several runs
    style     colours, axes, files                   times    calc, sync, comm and wait
    tiles     filters of the first layer             speedup  speed-up of more workers, relative to the ideal
    pushes    pushes to a parameter server and their staleness (records of kind push)

This is the only package that uses matplotlib. Figures are rendered off screen, so no display is needed.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from alexnet.plots.curves import comparison, learning_curves
from alexnet.plots.pushes import pushes
from alexnet.plots.records import RecordedRun, read_runs
from alexnet.plots.speedup import speedup
from alexnet.plots.style import PNG
from alexnet.plots.tiles import filters, filters_of_runs
from alexnet.plots.times import times_of_runs, times_over_run
from alexnet.run import checkpoint_format

__all__ = [
    "comparison", "draw", "filters", "filters_of_runs", "learning_curves", "pushes", "speedup", "times_of_runs",
    "times_over_run",
]


OF_KIND = {"push": pushes}              # kind of record of one rule -> its plot


def draw(
    folders: Iterable[str | Path], to: str | Path | None = None, formats: Sequence[str] = PNG, over: str = "epochs"
) -> list[Path]:
    """Draw all plots for which the run folders have records and checkpoints; returns the paths of the files.

    Args:
        folders: run folders.
        to: output folder, created if it does not exist. None: the folder of a single run, or the common parent folder
            of several runs.
        formats: "png", "svg" or both.
        over: x axis of the curves, "epochs" or "hours".

    Raises:
        FileNotFoundError: a folder has no records.
        CheckpointError: a run has checkpoints but none of them loads.
    """
    runs = read_runs(folders)
    if len(runs) == 1:
        return draw_run(runs[0], to, formats, over)
    place = created(to or os.path.commonpath([run.folder.parent for run in runs]))
    pictures = comparison(runs, place, formats, over)
    pictures += times_of_runs(runs, place, formats)
    pictures += speedup(runs, place, formats)
    tiles = {run.name: weights for run in runs if (weights := first_layer(run.folder)) is not None}
    return pictures + (filters_of_runs(tiles, place / "filters.png", formats) if tiles else [])


def draw_run(run: RecordedRun, to: str | Path | None, formats: Sequence[str], over: str) -> list[Path]:
    """Draw the plots of one run; see draw()."""
    place = created(to or run.folder)
    pictures = learning_curves(run, place, formats, over)
    pictures += times_over_run(run, place, formats)
    for kind in run.records.keys() & OF_KIND.keys():
        pictures += OF_KIND[kind](run, place, formats)
    weights = first_layer(run.folder)
    return pictures + (filters(weights, place / "filters.png", formats) if weights is not None else [])


def created(folder: str | Path) -> Path:
    """Return a folder, which is created if it does not exist."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def first_layer(folder: Path) -> np.ndarray | None:
    """Return the filters of the first layer in the newest checkpoint of a run, or None if there is none."""
    found = checkpoint_format.load_latest(folder, lambda metadata: ["conv1.W"])
    return None if found is None else found[1].get("conv1.W")
