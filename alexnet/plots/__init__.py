"""Pictures of runs, PNG or SVG: learning curves, where the time went, the filters of the first layer.

    records   what the runs recorded, as arrays      curves   cost and errors, of one run or of several
    style     colours, axes, files                   times    calc, sync, comm and wait
    tiles     filters                                speedup  what more workers gain, against the ideal
    pushes    what a parameter server got, and how stale

The only user of matplotlib; figures are drawn off screen, so no display is needed.
"""

import os
from pathlib import Path

from alexnet import checkpoint
from alexnet.plots.curves import comparison, learning_curves
from alexnet.plots.pushes import pushes
from alexnet.plots.records import read_runs
from alexnet.plots.speedup import speedup
from alexnet.plots.style import PNG
from alexnet.plots.tiles import filters, filters_of_runs
from alexnet.plots.times import times_of_runs, times_over_run

__all__ = [
    "comparison", "draw", "filters", "filters_of_runs", "learning_curves", "pushes", "speedup", "times_of_runs",
    "times_over_run",
]  # fmt: skip


def draw(folders, to=None, formats=PNG, over="epochs"):
    """Draw what run folders have records and checkpoints for; returns the paths of the pictures.

    to       folder for the pictures, made if need be; None: that of the one run, or the one that all runs lie in
    formats  "png", "svg" or both
    over     "epochs" or "hours": what the curves run over
    Raises FileNotFoundError when there are no records, CheckpointError when no checkpoint of a run loads.
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
    """The filters of the first layer in a run's newest checkpoint; None where there is none."""
    found = checkpoint.load_latest(folder, lambda metadata: ["conv1.W"])
    return None if found is None else found[1].get("conv1.W")
