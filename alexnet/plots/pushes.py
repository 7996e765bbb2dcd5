"""Records of kind push, of rule asgd: the staleness of pushes, and the time that clients waited for the server.

Source: Paine et al. 2013, section 2.3 (staleness and the cost of a push).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from alexnet.plots.records import Columns, RecordedRun
from alexnet.plots.style import PNG, RUNS, new_figure, plain, saved

MOST = 60                               # maximum bars of the histogram
FEW = 10                                # maximum clients for which every tick has a label
ASIDE = 0.1                             # horizontal offset of the two markers of a client


def pushes(run: RecordedRun, to: Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Plot the pushes of a run; returns the paths."""
    push = run.records["push"]
    figure = new_figure(11, 4.6)
    stale, waiting = figure.subplots(1, 2)
    staleness_of(stale, push)
    waiting_of(waiting, push)
    for axes in (stale, waiting):
        plain(axes)
    return saved(figure, to / "pushes", formats)


def staleness_of(axes: Axes, push: Columns) -> None:
    """Plot the histogram of staleness."""
    staleness = push["staleness"]
    most = int(staleness.max())
    width = -(-(most + 1) // MOST)
    edges = np.arange(0, most + width + 1, width) - 0.5
    axes.hist(staleness, edges.tolist(), color=RUNS[0], rwidth=0.9)
    axes.axvline(staleness.mean(), color=RUNS[1], linewidth=1.5, label=f"mean {staleness.mean():.1f}")
    clients = len(np.unique(push["client"]))
    axes.set_title(f"staleness of {staleness.size:,} pushes of {clients} client{'s' if clients > 1 else ''}")
    axes.set_xlabel("versions between fetch and push")
    axes.set_ylabel("pushes")
    axes.legend(frameon=False)


def waiting_of(axes: Axes, push: Columns) -> None:
    """Plot the waiting and serving time of each client."""
    clients = np.unique(push["client"]).astype(int)
    of_each = [push["client"] == client for client in clients]
    for field, aside, colour in (("waiting", -ASIDE, RUNS[4]), ("serving", ASIDE, RUNS[0])):
        medians, most = np.array([np.quantile(push[field][own], (0.5, 0.95)) for own in of_each]).T
        above = np.zeros_like(medians), most - medians
        axes.errorbar(clients + aside, medians, above, fmt="o", color=colour, capsize=3, markersize=5,
                      label=f"{field}: median, 95 %")
    axes.set_xticks(clients if len(clients) <= FEW else clients[:: -(-len(clients) // FEW)])
    axes.set_title("the clients' time at the server")
    axes.set_xlabel("client")
    axes.set_ylabel("milliseconds of a push")
    axes.set_xlim(clients[0] - 0.5, clients[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
