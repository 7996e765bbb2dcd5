"""The learning rate range test as a figure: the cost over the rate, and over the steps of the trials."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from alexnet.plots.style import PNG, RUNS, new_figure, plain, saved, styles
from alexnet.training.rate_range import CostCurve, best_of, edge_of

ABOVE = 1.3                             # largest cost shown, divided by the initial cost


def rate_range(
    sweep: CostCurve, trials: Sequence[CostCurve], before: float, proposal: float | None, path: Path,
    formats: Sequence[str] = PNG,
) -> list[Path]:
    """Plot a sweep and its trials; returns the paths.

    Args:
        before: the cost that trials must undercut.
        proposal: the proposed rate, or None if there is none.
        path: of the figure, without a suffix.
    """
    figure = new_figure(11 if trials else 6, 4.6)
    axes = figure.subplots(1, 2 if trials else 1, squeeze=False)[0]
    sweep_over_rates(axes[0], sweep, proposal)
    if trials:
        trials_over_steps(axes[1], trials, before)
    axes[0].set_ylim(0, ABOVE * sweep.initial)
    for each in axes:
        each.set_ylabel("cost of the batch (nats)")
        plain(each)
    return saved(figure, path, formats)


def sweep_over_rates(axes: Axes, sweep: CostCurve, proposal: float | None) -> None:
    """Plot the costs of the sweep over the rate."""
    axes.plot(sweep.rates, sweep.costs, color="0.75", linewidth=1, label="batch")
    axes.plot(sweep.rates, sweep.smoothed, color=RUNS[0], label="smoothed")
    axes.axvline(edge_of(sweep), color=RUNS[1], linestyle="--", linewidth=1, label=f"edge {edge_of(sweep):.2g}")
    if proposal is not None:
        axes.axvline(proposal, color=RUNS[2], linewidth=1.5, label=f"proposal {proposal:g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of the sweep")
    axes.legend(frameon=False)


def trials_over_steps(axes: Axes, trials: Sequence[CostCurve], before: float) -> None:
    """Plot the smoothed costs of the trials over the steps; that of the best one is wide."""
    best = best_of(trials, before)
    for trial, (colour, line) in zip(trials, styles(), strict=False):
        axes.plot(range(1, len(trial.costs) + 1), trial.smoothed, line, color=colour, label=f"{trial.rates[0]:g}",
                  linewidth=2.5 if trial is best else 1)
    axes.set_yscale("log")                       # the first costs may be far above the last ones
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_ylim(top=ABOVE * max(float(trial.costs[0]) for trial in trials))
    axes.set_xlabel("step of the trial")
    axes.legend(frameon=False, title="learning rate")
