"""Speed-up over the number of workers, relative to the ideal, and the cost of communication.

Images per second are computed from the laps, so a run must have processed 5,120 images. The runs of one model, rule and
strategy form a line. It is relative to the run of the model with one worker. If there is none, it is relative to its
run with the fewest workers, which is placed on the ideal line.

Source: Ma et al. 2016, table 1 (speed-up of N workers).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from alexnet.plots.records import RecordedRun, rule_of, strategy_of
from alexnet.plots.style import PNG, RUNS, literal, new_figure, plain, saved
from alexnet.plots.times import exchanging
from alexnet.training.timing import LAP

LOGARITHMIC = 16                        # workers from which the axes are logarithmic
IDEAL = "0.6"


class Point(NamedTuple):
    """A run in the plot."""

    workers: int
    rate: float                         # images/s of all workers
    exchanging: float                   # fraction of the time in comm and sync


def speedup(runs: Sequence[RecordedRun], to: Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Plot speed-up and cost over the number of workers; returns the paths, none if all runs have the same number."""
    lines = lines_of([run for run in runs if run.workers and run.speed["seconds"].sum() > 0])
    counts = sorted({point.workers for points in lines.values() for point in points})
    if len(counts) < 2:
        return []
    figure = new_figure(11, 4.8 + 0.24 * math.ceil(len(lines) / 2))
    gain, cost = figure.subplots(1, 2)
    gain.plot([1, counts[-1]], [1, counts[-1]], "--", color=IDEAL, linewidth=1, label="ideal")
    for (name, points), colour in zip(sorted(lines.items()), np.resize(RUNS, len(lines)), strict=True):
        base, *_ = points
        workers = [point.workers for point in points]
        gains = relative(points)
        label = name if base.workers == 1 else f"{name} (relative to {base.workers} workers)"
        gain.plot(workers, gains, "o-", color=colour, markersize=5, label=literal(label))
        cost.plot(workers, [100 * point.exchanging for point in points], "o-", color=colour, markersize=5)
        gain.annotate(f"{gains[-1]:.2f}×", (workers[-1], gains[-1]), (6, 0), textcoords="offset points", fontsize=9,
                      va="center", color=colour)
    gain.set_title("speed-up, images/s")
    cost.set_title("comm and sync (% of the time)")
    cost.set_ylim(bottom=0)
    for axes in (gain, cost):
        scale(axes, counts)
        plain(axes)
    if counts[-1] >= LOGARITHMIC:
        gain.set_yscale("log", base=2)
        gain.yaxis.set_major_formatter("{x:g}")
    else:
        gain.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", frameon=False, ncols=2, fontsize=9)
    return saved(figure, to / "speedup", formats)


def lines_of(runs: Sequence[RecordedRun]) -> dict[str, list[Point]]:
    """Return name -> Points sorted by the number of workers. Of runs with equal numbers, the fastest is used."""
    single: dict[str, list[Point]] = {}                     # model -> runs with one worker
    lines: dict[tuple[str, str | None, str | None], list[Point]] = {}
    for run in runs:
        model = run.settings.get("model", "")
        if run.workers == 1:
            single.setdefault(model, []).append(point_of(run))
        else:
            lines.setdefault((model, rule_of(run), strategy_of(run)), []).append(point_of(run))
    for model in single:
        if not any(key[0] == model for key in lines):
            lines[model, None, None] = []
    found = {key: fastest(single.get(key[0], []) + points) for key, points in lines.items()}
    return {", ".join(filter(None, key)) or "runs": points for key, points in found.items()}


def point_of(run: RecordedRun) -> Point:
    """Return the Point of a run with laps."""
    return Point(run.workers, LAP / run.speed["seconds"].mean(), exchanging(run))


def fastest(points: Sequence[Point]) -> list[Point]:
    """Return the fastest Point for each number of workers, in increasing order of workers."""
    return [max((point for point in points if point.workers == n), key=lambda point: point.rate)
            for n in sorted({point.workers for point in points})]


def relative(points: Sequence[Point]) -> list[float]:
    """Return the speed-ups of Points, defined so that the speed-up of the first is its number of workers."""
    base = points[0]
    return [base.workers * point.rate / base.rate for point in points]


def scale(axes: Axes, counts: Sequence[int]) -> None:
    """Scale the axis of workers, with a tick for each number of workers."""
    axes.set_xlabel("workers")
    if counts[-1] >= LOGARITHMIC:
        axes.set_xscale("log", base=2)
        axes.set_xlim(counts[0] / 1.3, 1.5 * counts[-1])
    else:
        axes.set_xlim(0, 1.12 * counts[-1])
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
