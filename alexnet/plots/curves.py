"""Learning curves: cost and errors of one run, or of several runs in one figure."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from alexnet.plots.records import (
    TICKS,
    Columns,
    RecordedRun,
    asynchronous_workers,
    averaged,
    in_order,
    read_run,
    what_differs,
)
from alexnet.plots.style import PNG, finish, literal, new_figure, saved, shortened, styles

POINTS = 300                            # maximum points of a training curve; more would show only noise
TRAINING, TOP1, TOP5 = "#8a9bb0", "#c8452f", "#2f6fa8"
ERRORS = {"top1_error": "top-1", "top5_error": "top-5"}
LOWEST_TOP = 5                          # %, minimum upper limit of an error axis, for runs in which all errors are 0
MARKED = 30                             # maximum validations with markers; more markers would hide the lines
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
    x = TICKS[over]
    figure = new_figure(8, 7.5)
    cost, error = figure.subplots(2, 1, sharex=True)
    figure.suptitle(literal(heading(run)))
    cost.plot(*smoothed(run.train, x, "cost"), color=TRAINING, label="training")
    cost.plot(run.validation[x], run.validation["cost"], "o-", color=TOP1, markersize=4, label="validation")
    error.plot(*smoothed(run.train, x, "top1_error", 100), color=TRAINING, label="training, top-1")
    for field, colour in (("top1_error", TOP1), ("top5_error", TOP5)):
        label = f"validation, {ERRORS[field]}"
        error.plot(run.validation[x], 100 * run.validation[field], "o-", color=colour, markersize=4, label=label)
    cost.set_ylabel("cost (nats per image)")
    error.set_ylabel("error (% of images)")
    mark_drops(run.train, x, (cost, error))
    for axes in (cost, error):
        finish(axes, over)
        axes.legend(frameon=False)
    cost.set_xlabel("")
    error.set_ylim(0, 100)
    return saved(figure, (to or run.folder) / NAMES[over], formats)


def comparison(
    runs: Sequence[RecordedRun], to: Path, formats: Sequence[str] = PNG, over: str = "epochs"
) -> list[Path]:
    """Plot cost, top-1 and top-5 error of several runs, one colour per run; returns the paths."""
    x = TICKS[over]
    figure = new_figure(13, 4.6 + 0.24 * math.ceil(len(runs) / 2))
    differs = what_differs(runs)
    cost, *errors = figure.subplots(1, 3)
    for run, (colour, line) in zip(runs, styles(), strict=False):
        marker = "o" if run.validation["epoch"].size <= MARKED else ""
        thick = {"color": colour, "linestyle": line, "linewidth": 1.8, "marker": marker, "markersize": 3.5}
        thin = {"color": colour, "linestyle": line, "linewidth": 0.8, "alpha": 0.45}
        cost.plot(*smoothed(run.train, x, "cost"), **thin)
        errors[0].plot(*smoothed(run.train, x, "top1_error", 100), **thin)
        (drawn,) = cost.plot(run.validation[x], run.validation["cost"], **thick)
        drawn.set_label(literal(in_legend(run, differs[run.name])))
        for axes, field in zip(errors, ERRORS, strict=True):
            axes.plot(run.validation[x], 100 * run.validation[field], **thick)
    cost.set_title("cost (nats per image)")
    for axes, name in zip(errors, ERRORS.values(), strict=True):
        axes.set_title(f"{name} error (% of images)")
    for axes in (cost, *errors):
        finish(axes, over)
    for axes in errors:
        axes.set_ylim(top=max(axes.get_ylim()[1], LOWEST_TOP))
    title = "Thick: validation. Thin: training."
    figure.legend(loc="outside lower center", frameon=False, ncols=min(len(runs), 2), title=title, fontsize=9)
    return saved(figure, to / NAMES[over], formats)


def smoothed(train: Columns, x: str, field: str, scale: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, scale * field), averaged over intervals of equal numbers of records, at most POINTS of them.

    For asynchronous workers, an interval has at least as many records as there are workers.
    """
    most = max(1, len(train[x]) // max(1, asynchronous_workers(train)))
    means = averaged(in_order(train, x), (x, field), min(POINTS, most))
    return means[x], scale * means[field]


def mark_drops(train: Columns, x: str, panels: Sequence[Axes]) -> None:
    """Mark each drop of the learning rate to half or less with a dashed line; the first panel shows the new rate."""
    train = of_one_worker(train)
    rate = train["learning_rate"]
    place = train[x]
    for after in (1 + np.flatnonzero(rate[1:] <= rate[:-1] / 2)).tolist():
        for axes in panels:
            axes.axvline(place[after - 1], color="0.6", linestyle="--", linewidth=1)
        panels[0].text(
            place[after - 1], 0.98, f" rate {rate[after]:g}", transform=panels[0].get_xaxis_transform(), va="top",
            fontsize=8, color="0.4",
        )


def of_one_worker(train: Columns) -> Columns:
    """Return the records of one worker if the workers are asynchronous, else all records.

    Asynchronous workers may change their learning rates at different times.
    """
    worker = train["worker"]
    first = ~np.isnan(worker) & (worker == np.nanmin(worker)) if not np.isnan(worker).all() else np.isnan(worker)
    return {name: column[first] for name, column in train.items()}


def heading(run: RecordedRun) -> str:
    """Return the title of the curves of a run: its name, and the error of the last validation."""
    errors = run.validation["top1_error"]
    name = shortened(run.name)
    return f"{name}: top-1 validation error {errors[-1]:.1%}" if errors.size else name


def in_legend(run: RecordedRun, differs: str = "") -> str:
    """Return the legend of a run: its name, its differences from other runs, and its errors after the last epoch."""
    name = f"{shortened(run.name)} ({differs})" if differs else shortened(run.name)
    if not run.validation["epoch"].size:
        return f"{name}: not validated yet"
    top1, top5 = (run.validation[field][-1] for field in ERRORS)
    return f"{name}: top-1 {top1:.1%}, top-5 {top5:.1%}, epoch {run.validation['epoch'][-1]:.0f}"
