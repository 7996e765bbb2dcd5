"""Where the time of training goes, as upstream splits it: calc, sync, comm and wait, in seconds per 20 iterations.

Source: Ding et al. 2014, table 1 (seconds per 20 iterations).
"""

import numpy as np

from alexnet.plots.records import averaged
from alexnet.plots.style import PNG, SECTIONS, finish, literal, new_figure, plain, saved, shortened

POINTS = 100                            # of a run's history: bars that can be seen
ITERATIONS = 20
MEASURED = [section for section in SECTIONS if section != "other"]


def times_over_run(run, to, formats=PNG):
    """Draw how the time per 20 iterations was split as the run went on; returns the paths, none if no time passed."""
    if not timed(run):
        return []
    means = averaged(with_other(run.train), ("epoch", *SECTIONS), POINTS)
    right = np.append((means["epoch"][1:] + means["epoch"][:-1]) / 2, run.train["epoch"][-1])
    left = np.concatenate([[0], right[:-1]])
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    bottom = np.zeros(len(left))
    for section, colour in SECTIONS.items():
        height = ITERATIONS * means[section]
        axes.bar(left, height, right - left, bottom, align="edge", color=colour, label=labelled(run, section))
        bottom += height
    axes.set_title(literal(f"{shortened(run.name)}: {speed(run)}"))
    axes.set_ylabel(f"seconds per {ITERATIONS} iterations")
    finish(axes)
    figure.legend(loc="outside lower center", frameon=False, ncols=len(SECTIONS))
    return saved(figure, to / "times", formats)


def times_of_runs(runs, to, formats=PNG):
    """Draw the mean time per 20 iterations of several runs as bars below each other; returns the paths."""
    runs = list(filter(timed, runs))
    if not runs:
        return []
    figure = new_figure(11, 1.6 + 0.45 * len(runs))
    axes = figure.subplots()
    rows, left = np.arange(len(runs)), np.zeros(len(runs))
    for section, colour in SECTIONS.items():
        width = ITERATIONS * np.array([np.nanmean(with_other(run.train)[section]) for run in runs])
        axes.barh(rows, width, 0.7, left, color=colour, label=section)
        left += width
    for row, run in zip(rows, runs, strict=True):
        axes.text(left[row], row, f"  {speed(run)}", va="center", fontsize=9)
    axes.set_yticks(rows, [literal(shortened(run.name)) for run in runs])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * left.max())          # room for the text
    axes.set_xlabel(f"seconds per {ITERATIONS} iterations")
    plain(axes)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", frameon=False, ncols=len(SECTIONS))
    return saved(figure, to / "times", formats)


def timed(run):
    return np.nansum(run.train["seconds"]) > 0


def with_other(train):
    """The records with what no section has measured, drawing a record for example, as `other`."""
    measured = sum(train[section] for section in MEASURED)
    return train | {"other": np.maximum(train["seconds"] - measured, 0)}


def labelled(run, section):
    return f"{section} {np.nansum(with_other(run.train)[section]) / np.nansum(run.train['seconds']):.1%}"


def speed(run):
    """Seconds per 20 iterations, and images per second, of a run."""
    seconds, images = np.nanmean(run.train["seconds"]), np.nanmean(run.train["images"])
    return f"{ITERATIONS * seconds:.1f} s, {images / seconds:,.{0 if images > 100 * seconds else 1}f} images/s"
