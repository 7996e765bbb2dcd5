"""Plots of runs as PNG or SVG: learning curves, time split, filters of the first layer.

    records   records of the runs as arrays          curves   cost and errors of one or several runs
    style     colours, axes, files                   times    calc, sync, comm and wait
    tiles     filters of the first layer             speedup  speed-up of more workers, relative to the ideal
    pushes    pushes to a parameter server and their staleness

This is the only package that uses matplotlib. Figures are rendered off screen, so no display is needed.
"""

import os
from pathlib import Path

from alexnet.plots.curves import comparison, learning_curves
from alexnet.plots.pushes import pushes
from alexnet.plots.records import read_runs
from alexnet.plots.speedup import speedup
from alexnet.plots.style import PNG
from alexnet.plots.tiles import filters, filters_of_runs
from alexnet.plots.times import times_of_runs, times_over_run
from alexnet.run import checkpoint_format

__all__ = [
    "comparison", "draw", "filters", "filters_of_runs", "learning_curves", "pushes", "speedup", "times_of_runs",
    "times_over_run",
]


def draw(folders, to=None, formats=PNG, over="epochs"):
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
    alone = len(runs) == 1
    place = Path(to or (runs[0].folder if alone else os.path.commonpath([run.folder.parent for run in runs])))
    place.mkdir(parents=True, exist_ok=True)
    pictures = learning_curves(runs[0], place, formats, over) if alone else comparison(runs, place, formats, over)
    pictures += times_over_run(runs[0], place, formats) if alone else times_of_runs(runs, place, formats)
    pictures += pushes(runs[0], place, formats) if alone else speedup(runs, place, formats)
    tiles = {run.name: weights for run in runs if (weights := first_layer(run.folder)) is not None}
    if alone and tiles:
        pictures += filters(tiles[runs[0].name], place / "filters.png", formats)
    elif tiles:
        pictures += filters_of_runs(tiles, place / "filters.png", formats)
    return pictures


def first_layer(folder):
    """Return the filters of the first layer in the newest checkpoint of a run, or None if there is none."""
    found = checkpoint_format.load_latest(folder, lambda metadata: ["conv1.W"])
    return None if found is None else found[1].get("conv1.W")
