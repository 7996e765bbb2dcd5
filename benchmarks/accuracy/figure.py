"""The figures of this benchmark and of Theano-MPI's trainings.

python -m benchmarks.accuracy.figure curves FILE docs/pictures/accuracy.png
python -m benchmarks.accuracy.figure theano_mpi docs/pictures/theano_mpi.png

FILE is one that benchmarks.accuracy --curves has written. The data of Theano-MPI's trainings is theano_mpi.csv: the
values after each epoch in its recorder files (configs/theano_mpi_1gpu.yaml names them), for ILSVRC 2012.
"""

import csv
import json
import pathlib
import sys

import numpy as np

from alexnet.plots.style import RUNS, finish, new_figure, saved
from benchmarks.accuracy.__main__ import BASELINE, FAULTY, TORCH

CSV = pathlib.Path(__file__).with_name("theano_mpi.csv")
SHOWN = {BASELINE: "this project", TORCH: "PyTorch", FAULTY: "PyTorch without momentum"}
GPUS = {"alexnet_1gpu": "1 GPU", "alexnet_4gpu": "4 GPUs", "alexnet_8gpu": "8 GPUs"}
QUANTITIES = {"validation_cost": ("validation cost (nats)", 1), "top1_error": ("top-1 validation error (%)", 100),
              "top5_error": ("top-5 validation error (%)", 100)}


def accuracy_figure(curves):
    """Return the figure of the learning curves: one line per seed, and the mean of each group as a thick line."""
    drawing = new_figure(9, 4)
    panels = drawing.subplots(1, 2)
    for axes, quantity, label, unit in zip(
        panels, (0, 1), ("validation cost (nats)", "top-1 validation error (%)"), (1, 100), strict=True
    ):
        for colour, (name, title) in zip(RUNS, SHOWN.items(), strict=False):
            runs = unit * np.array(list(curves[name].values()))[..., quantity]
            epochs = np.arange(1, runs.shape[1] + 1)
            axes.plot(epochs, runs.T, color=colour, linewidth=0.8, alpha=0.5)
            axes.plot(epochs, runs.mean(axis=0), color=colour, linewidth=2, marker="o", markersize=4, label=title)
        finish(axes, bottom=0.95 * min(line.get_ydata().min() for line in axes.lines))
        axes.set_ylabel(label)
    panels[0].legend(frameon=False)
    return drawing


def theano_mpi_figure(rows):
    """Return the figure of Theano-MPI's trainings of AlexNet: cost, top-1 and top-5 error after each epoch."""
    drawing = new_figure(12, 4)
    panels = drawing.subplots(1, 3)
    for axes, (quantity, (label, unit)) in zip(panels, QUANTITIES.items(), strict=True):
        for colour, (run, title) in zip(RUNS, GPUS.items(), strict=False):
            values = [unit * float(row[quantity]) for row in rows if row["run"] == run]
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.6, label=title)
        finish(axes)
        axes.set_ylabel(label)
    panels[0].legend(frameon=False)
    return drawing


def theano_mpi_rows():
    """Return the rows of theano_mpi.csv as dicts of texts."""
    with CSV.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(kind, *paths):
    if kind == "curves":
        file, path = paths
        saved(accuracy_figure(json.loads(pathlib.Path(file).read_text(encoding="utf-8"))), path)
    else:
        saved(theano_mpi_figure(theano_mpi_rows()), *paths)


if __name__ == "__main__":
    main(*sys.argv[1:])
