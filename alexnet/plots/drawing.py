"""All plots of a run, or of several runs."""

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from alexnet.plots.curves import comparison, learning_curves
from alexnet.plots.pushes import pushes
from alexnet.plots.records import RecordedRun, read_runs
from alexnet.plots.report import history
from alexnet.plots.speedup import speedup
from alexnet.plots.statistics import statistics
from alexnet.plots.style import PNG
from alexnet.plots.tiles import filters, filters_of_runs
from alexnet.plots.times import times_of_runs, times_over_run
from alexnet.run import checkpoint_format

__all__ = [
    "comparison", "draw", "filters", "filters_of_runs", "learning_curves", "pushes", "speedup", "statistics",
    "times_of_runs", "times_over_run",
]


OF_KIND = {"push": pushes, "statistics": statistics}           # kind of record that not every run has -> its plot
LONGEST = 60                            # characters of a folder's name


def draw(
    folders: Iterable[str | Path], to: str | Path | None = None, formats: Sequence[str] = PNG, over: str = "epochs"
) -> list[Path]:
    """Draw all plots for which the run folders have records and checkpoints; returns the paths of the files.

    Args:
        folders: run folders.
        to: output folder, created if it does not exist. None: the folder of a single run; for several runs, a
            subfolder of `compared` in their common parent folder.
        formats: names in style.FORMATS.
        over: x axis of the curves, "epochs" or "hours".

    Raises:
        FileNotFoundError: a folder has no records.
        CheckpointError: a run has checkpoints but none of them loads.
    """
    runs = read_runs(folders)
    if len(runs) == 1:
        return draw_run(runs[0], to, formats, over)
    place = created(to or folder_of_comparison(runs))
    pictures = comparison(runs, place, formats, over)
    pictures += times_of_runs(runs, place, formats)
    pictures += speedup(runs, place, formats)
    tiles = {run.name: weights for run in runs if (weights := first_layer(run.folder)) is not None}
    initial = {run.name: history.load(run.folder).initial for run in runs}
    return pictures + (filters_of_runs(tiles, place / "filters.png", formats, initial) if tiles else [])


def folder_of_comparison(runs: Sequence[RecordedRun]) -> Path:
    """Return the folder for the pictures of several runs: the same for the same runs, another for others."""
    names = [run.folder.name for run in runs]
    name = "+".join(names)
    if len(name) > LONGEST:
        name = f"{len(runs)}_runs_{zlib.crc32(repr([run.folder for run in runs]).encode()):08x}"
    return Path(os.path.commonpath([run.folder.parent for run in runs]), "compared", name)


def draw_run(run: RecordedRun, to: str | Path | None, formats: Sequence[str], over: str) -> list[Path]:
    """Draw the plots of one run; see draw()."""
    place = created(to or run.folder)
    pictures = learning_curves(run, place, formats, over)
    pictures += times_over_run(run, place, formats)
    for kind in run.records.keys() & OF_KIND.keys():
        pictures += OF_KIND[kind](run, place, formats)
    weights = first_layer(run.folder)
    if weights is None:
        return pictures
    return pictures + filters(weights, place / "filters.png", formats, history.load(run.folder).initial)


def created(folder: str | Path) -> Path:
    """Return a folder, which is created if it does not exist."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def first_layer(folder: Path) -> np.ndarray | None:
    """Return the filters of the first layer, from the newest checkpoint of a run or its report; None if it has none."""
    found = checkpoint_format.load_latest(folder, lambda metadata: [history.FILTERS])
    if found and history.FILTERS in found[1]:
        return found[1][history.FILTERS]
    stored = history.load(folder).filters
    return stored[max(stored)] if stored else None
