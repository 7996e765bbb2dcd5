"""Learning curves: cost and errors of one run, or of several runs in one figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from alexnet.plots.records import (
    TICKS,
    Columns,
    RecordedRun,
    rate_drops,
    read_run,
    smoothed,
    title_of,
    what_differs,
    what_is_common,
)
from alexnet.plots.style import PNG, finish, literal, new_figure, saved, shortened, styles

TRAINING, TOP1, TOP5 = "#8a9bb0", "#c8452f", "#2f6fa8"
ERRORS = {"top1_error": "top-1", "top5_error": "top-5"}
LOWEST_TOP = 5                          # %, minimum upper limit of an error axis, for runs in which all errors are 0
MARKED = 30                             # maximum validations with markers; more markers would hide the lines
FEWEST_HOURS = 2                        # runs shorter than this have an axis in minutes
NAMES = {"epochs": "learning_curves", "hours": "learning_curves_over_hours"}


def learning_curves(
    run: RecordedRun | str | Path, to: Path | None = None, formats: Sequence[str] = PNG, over: str = "epochs"
) -> list[Path]:
    """Plot cost and errors of a run and mark the drops of the learning rate; returns the paths.

    Args:
        run: a RecordedRun or its folder.
        to: output folder; None for the folder of the run.

    Raises:
        FileNotFoundError: the folder has no records.
    """
    run = run if isinstance(run, RecordedRun) else read_run(run)
    axis = axis_of([run], over)
    figure = new_figure(8, 7.5)
    cost, error = figure.subplots(2, 1, sharex=True)
    figure.suptitle(literal(heading(run)))
    cost.plot(*training(run, axis, "cost"), color=TRAINING, label="training")
    cost.plot(*validation(run, axis, "cost"), "o-", color=TOP1, markersize=4, label="validation")
    error.plot(*training(run, axis, "top1_error", 100), color=TRAINING, label="training, top-1")
    for field, colour in zip(errors_of([run]), (TOP1, TOP5), strict=False):
        label = f"validation, {ERRORS[field]}"
        error.plot(*validation(run, axis, field, 100), "o-", color=colour, markersize=4, label=label)
    if run.classes:
        error.axhline(100 * (1 - 1 / run.classes), color="0.5", linestyle=":", linewidth=1.2, label="chance")
    cost.set_ylabel("cost (nats per image)")
    error.set_ylabel("error (% of images)")
    mark_drops(run.train, axis, (cost, error))
    for axes in (cost, error):
        finish(axes, axis.unit)
        axes.legend(frameon=False)
    cost.set_xlabel("")
    error.set_ylim(0, 101)                   # a line at 100 % is not clipped
    return saved(figure, (to or run.folder) / NAMES[over], formats)


def comparison(
    runs: Sequence[RecordedRun], to: Path, formats: Sequence[str] = PNG, over: str = "epochs"
) -> list[Path]:
    """Plot cost, top-1 and top-5 error of several runs, one colour per run; returns the paths."""
    axis = axis_of(runs, over)
    names = errors_of(runs)
    figure = new_figure(4.4 * (1 + len(names)), 5.0 + 0.24 * math.ceil(len(runs) / 2))
    differs = what_differs(runs)
    cost, *errors = figure.subplots(1, 1 + len(names))
    for run, (colour, line) in zip(runs, styles(), strict=False):
        marker = "o" if run.validation["epoch"].size <= MARKED else ""
        thick = {"color": colour, "linestyle": line, "linewidth": 1.8, "marker": marker, "markersize": 3.5}
        thin = {"color": colour, "linestyle": line, "linewidth": 1.0, "alpha": 0.5}
        cost.plot(*training(run, axis, "cost"), **thin)
        errors[0].plot(*training(run, axis, "top1_error", 100), **thin)
        (drawn,) = cost.plot(*validation(run, axis, "cost"), **thick)
        drawn.set_label(literal(in_legend(run, differs[run.name])))
        for axes, field in zip(errors, errors_of([run]), strict=False):
            axes.plot(*validation(run, axis, field, 100), **thick)
    cost.set_title("cost (nats per image)")
    for axes, field in zip(errors, names, strict=True):
        axes.set_title(f"{ERRORS[field]} error (% of images)")
    for axes in (cost, *errors):
        finish(axes, axis.unit)
    for axes in errors:
        axes.set_ylim(top=max(axes.get_ylim()[1], LOWEST_TOP))
    figure.suptitle(literal(f"{what_is_common(runs)} (thick: validation, thin: training)"))
    figure.legend(loc="outside lower center", frameon=False, ncols=min(len(runs), 2), fontsize=9)
    return saved(figure, to / NAMES[over], formats)


class TimeAxis(NamedTuple):
    """The horizontal axis of the curves."""

    field: str                          # of the records
    factor: float                       # from the field to the unit
    unit: str                           # "epochs", "hours" or "minutes"


def axis_of(runs: Sequence[RecordedRun], over: str) -> TimeAxis:
    """Return the axis of runs over "epochs" or "hours"; in minutes if the longest run takes less than two hours."""
    longest = max(columns["hours"].max(initial=0) for run in runs for columns in (run.train, run.validation))
    if over == "hours" and longest < FEWEST_HOURS:
        return TimeAxis("hours", 60, "minutes")
    return TimeAxis(TICKS[over], 1, over)


def training(run: RecordedRun, axis: TimeAxis, field: str, scale: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the smoothed training curve of a run."""
    x, y = smoothed(run.train, axis.field, field, scale)
    return axis.factor * x, y


def validation(run: RecordedRun, axis: TimeAxis, field: str, scale: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the validation curve of a run."""
    return axis.factor * run.validation[axis.field], scale * run.validation[field]


def errors_of(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the fields of the errors to plot: top-5 only if a network has enough classes."""
    return [field for field in ERRORS if field == "top1_error" or any(run.shows_top5 for run in runs)]


def mark_drops(train: Columns, axis: TimeAxis, panels: Sequence[Axes]) -> None:
    """Mark each drop of the learning rate with a dashed line; the first panel shows the new rate."""
    for place, rate in rate_drops(train, axis.field):
        for axes in panels:
            axes.axvline(axis.factor * place, color="0.6", linestyle="--", linewidth=1)
        panels[0].text(
            axis.factor * place, 0.98, f" rate {rate:g}", transform=panels[0].get_xaxis_transform(), va="top",
            fontsize=8, color="0.4",
        )


def heading(run: RecordedRun) -> str:
    """Return the title of the curves of a run: network, data and result, and in a second line its name."""
    title = title_of(run)
    return title if title.startswith(run.name) else f"{title}\nrun {shortened(run.name)}"


def in_legend(run: RecordedRun, differs: str = "") -> str:
    """Return the legend of a run: its name, its differences from other runs, and its errors after the last epoch."""
    name = f"{shortened(run.name)} ({differs})" if differs else shortened(run.name)
    if not run.validation["epoch"].size:
        return f"{name}: not validated yet"
    results = ", ".join(f"{ERRORS[field]} {run.validation[field][-1]:.2%}" for field in errors_of([run]))
    return f"{name}: {results}, epoch {run.validation['epoch'][-1]:.0f}"
