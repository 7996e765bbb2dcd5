"""The time of training, split as in upstream: calc, sync, comm and wait.

Units are seconds per 20 iterations of a worker and, if a run has completed a lap, seconds per 5,120 images of all
workers.

Source: Ding et al. 2014, table 1 (seconds per 20 iterations); Ma et al. 2016 (per 5,120 images).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from alexnet.plots.records import RecordedRun, averaged, in_order, what_is_common, with_other
from alexnet.plots.style import PNG, SECTIONS, finish, literal, new_figure, plain, saved, shortened
from alexnet.training.timing import LAP

POINTS = 100                            # maximum bars for a run
ITERATIONS = 20


class Unit(NamedTuple):
    """A unit of time."""

    kind: str                           # of the records
    label: str                          # of the axis
    factor: float                       # from the seconds of a record to the unit
    text: Callable[[RecordedRun], str]  # description of a run in this unit


def of_iterations(run: RecordedRun) -> str:
    """Describe a run by its seconds per 20 iterations and images per second."""
    seconds = np.nanmean(run.train["seconds"])
    images = np.nanmean(run.train["images"])
    return f"{ITERATIONS * seconds:.1f} s, {rate_text(float(images / seconds))}"


def of_images(run: RecordedRun) -> str:
    """Describe a run by its seconds per 5,120 images, images per second, and fraction of time in comm and sync."""
    seconds = run.speed["seconds"].mean()
    return f"{seconds:.1f} s, {rate_text(LAP / seconds)}, {exchanging(run):.0%} comm and sync"


def rate_text(rate: float) -> str:
    """Format a speed for display."""
    return f"{rate:,.{0 if rate > 100 else 1}f} images/s"


UNITS = (
    Unit("train", f"seconds per {ITERATIONS} iterations", ITERATIONS, of_iterations),
    Unit("speed", f"seconds per {LAP:,} images", 1, of_images),
)


def times_over_run(run: RecordedRun, to: Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Plot the time split over the course of a run; returns the paths, none if no time was recorded."""
    units = [unit for unit in UNITS if timed(run, unit)]
    if not units:
        return []
    figure = new_figure(8, 4.5 if len(units) == 1 else 7.5)
    figure.suptitle(literal(f"{shortened(run.name)}: where the time goes"))
    panels = figure.subplots(len(units), 1, squeeze=False, sharex=True)[:, 0]
    for unit, axes in zip(units, panels, strict=True):
        stack(axes, run, unit)
    panels[0].set_xlabel("" if len(units) > 1 else "epoch")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=len(SECTIONS))
    return saved(figure, to / "times", formats)


def stack(axes: Axes, run: RecordedRun, unit: Unit) -> None:
    """Plot a stacked bar for each interval of a run."""
    records = in_order(with_other(run.records[unit.kind]), "epoch")
    means = averaged(records, ("epoch", *SECTIONS), POINTS)
    ends = means["epoch"]
    if unit.kind == "speed":                     # a lap is recorded at its end
        left = np.concatenate([[0], ends[:-1]])
        right = ends
    else:
        right = np.append((ends[1:] + ends[:-1]) / 2, records["epoch"][-1])
        left = np.concatenate([[0], right[:-1]])
    bottom = np.zeros(len(left))
    for section, colour in SECTIONS.items():
        height = unit.factor * means[section]
        label = f"{section} {share(run, unit, section):.1%}"
        axes.bar(left, height, right - left, bottom, align="edge", color=colour, label=label)
        bottom += height
    axes.set_title(unit.text(run))
    axes.set_ylabel(unit.label)
    finish(axes)


def times_of_runs(runs: Sequence[RecordedRun], to: Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Plot the mean times of several runs as horizontal bars; returns the paths, none if no time was recorded."""
    shown = {unit: timed_runs for unit in UNITS if (timed_runs := [run for run in runs if timed(run, unit)])}
    if not shown:
        return []
    rows = [len(each) for each in shown.values()]
    figure = new_figure(11, 0.8 + sum(0.8 + 0.45 * n for n in rows))
    figure.suptitle(literal(f"{what_is_common(runs)}: where the time goes"))
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=[n + 1 for n in rows])[:, 0]
    for (unit, each), axes in zip(shown.items(), panels, strict=True):
        bars(axes, each, unit)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=len(SECTIONS))
    return saved(figure, to / "times", formats)


def bars(axes: Axes, runs: Sequence[RecordedRun], unit: Unit) -> None:
    """Plot a stacked bar for each run."""
    rows = range(len(runs))
    left: np.ndarray = np.zeros(len(runs))
    for section, colour in SECTIONS.items():
        width = unit.factor * np.array([np.nanmean(with_other(run.records[unit.kind])[section]) for run in runs])
        axes.barh(rows, width, 0.7, left, color=colour, label=section)
        left += width
    for row, run in enumerate(runs):
        axes.text(float(left[row]), row, f"  {unit.text(run)}", va="center", fontsize=9)
    axes.set_yticks(rows, [literal(shortened(run.name)) for run in runs])
    axes.invert_yaxis()
    axes.set_xlim(0, (1.35 if unit.kind == "train" else 1.6) * float(np.max(left)))          # space for the text
    axes.set_xlabel(unit.label)
    plain(axes)
    axes.grid(visible=False, axis="y")


def timed(run: RecordedRun, unit: Unit) -> bool:
    """Return whether a run has recorded time in a unit."""
    return np.nansum(run.records[unit.kind]["seconds"]) > 0


def share(run: RecordedRun, unit: Unit, section: str) -> float:
    """Return the fraction of the time of a run that a section takes."""
    records = run.records[unit.kind]
    return float(np.nansum(with_other(records)[section])) / float(np.nansum(records["seconds"]))


def exchanging(run: RecordedRun) -> float:
    """Return the fraction of the laps of a run that comm and sync take."""
    return float((run.speed["comm"] + run.speed["sync"]).sum()) / float(run.speed["seconds"].sum())
