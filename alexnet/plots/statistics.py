"""Records of kind statistics: gradients, updates, outputs and dead units of each layer over the run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from alexnet.plots.records import RecordedRun
from alexnet.plots.style import PNG, new_figure, plain, saved

LABELLED = 12                           # maximum layers in the legend; with more, only the first and the last
PANELS = {
    "gradient": "norm of the gradient",
    "update": "change in a step / norm of the parameters",
    "scale": "root mean square of the outputs",
    "dead": "share of dead units",
}


def statistics(run: RecordedRun, to: Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Plot the statistics of a run, the first layers dark and the last ones bright; returns the paths."""
    columns = run.records["statistics"]
    layers = [name.removesuffix(".scale") for name in columns if name.endswith(".scale")]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    figure = new_figure(11, 7)
    for axes, (what, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for n, (layer, colour) in enumerate(zip(layers, colours, strict=True)):
            labelled = len(layers) <= LABELLED or n in (0, len(layers) - 1)
            axes.plot(columns["iteration"], columns[f"{layer}.{what}"], color=colour, label=layer if labelled else None)
        axes.set_title(title)
        axes.set_xlabel("iteration")
        if what == "dead":
            axes.set_ylim(-0.02, 1.02)
        else:
            axes.set_yscale("log", nonpositive="mask")
        plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return saved(figure, to / "statistics", formats)
