"""The figure of benchmarks.mpi.rules: validation error against seconds on each link, and against the bytes it carried.

python -m benchmarks.mpi.rules_figure 1gbit.json 100mbit.json docs/pictures/rules_on_links.png

The arguments are files that benchmarks.mpi.rules --curves has written, and the path of the figure. The panel of the
bytes is that of the first file. Only the first run of each configuration is drawn.
"""

import json
import pathlib
import sys

from benchmarks.mpi.rules import CONFIGURATIONS

ERRORS = (2, 5, 10, 20, 50, 100)                 # ticks, % of images
GIGABYTES = (0.03, 0.1, 0.3, 1, 3)               # ticks


def figure(links):
    """Return the figure of the contents of some files."""
    from alexnet.plots.style import new_figure, plain  # imports matplotlib, which the measured ranks do not need

    drawing = new_figure(4.6 * (len(links) + 1), 5.2)
    *over_time, over_bytes = panels = drawing.subplots(1, len(links) + 1, sharey=True)
    for axes, link in zip(over_time, links, strict=True):
        plot(axes, link, 0, 1)
        axes.set_xlim(left=0)
        axes.set_title(link["link"])
        axes.set_xlabel("time of training and validation (s)")
    plot(over_bytes, links[0], 1, 1e9)
    over_bytes.set_title("bytes")
    over_bytes.set_xlabel("sent over the link, both directions (GB)")
    panels[0].set_ylabel("top-1 validation error (% of images)")
    for axes in panels:
        axes.set_yscale("log")
        axes.set_yticks(ERRORS, list(map(str, ERRORS)))
        plain(axes)
    over_bytes.set_xscale("log")
    over_bytes.set_xticks(GIGABYTES, list(map(str, GIGABYTES)))
    for axes in panels:
        axes.minorticks_off()
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return drawing


def plot(axes, link, quantity, unit):
    """Plot the errors of a file over element `quantity` of the points of a curve, in a unit."""
    for name, look in looks().items():
        if curves := link["curves"].get(name):
            x, y = [point[quantity] / unit for point in curves[0]], [100 * error for *_, error in curves[0]]
            axes.plot(x, y, label=name, linewidth=1.6, markersize=4, **look)


def looks():
    """Return {configuration: style}: solid lines if the workers exchange after each step, otherwise dashed ones."""
    from alexnet.plots.style import RUNS  # imports matplotlib, which the measured ranks do not need

    periods = ("average_every", "rule")
    each_step = [n for n, (_, given) in CONFIGURATIONS.items() if [given.get(p) for p in periods] == [None, "bsp"]]
    rarely = [name for name in CONFIGURATIONS if name not in each_step]
    solid = {name: {"color": RUNS[n], "linestyle": "-", "marker": "o"} for n, name in enumerate(each_step)}
    dashed = {name: {"color": RUNS[n], "linestyle": "--", "marker": "s"} for n, name in enumerate(rarely)}
    return solid | dashed


def main(*arguments):
    from alexnet.plots.style import saved  # imports matplotlib, which the measured ranks do not need

    *files, path = arguments
    links = [json.loads(pathlib.Path(file).read_text(encoding="utf-8")) for file in files]
    saved(figure(links), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
