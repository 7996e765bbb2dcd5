"""The accuracy with the learning rate that `lr-find` proposes, compared with that of the best rate.

python -m benchmarks.accuracy.proposed_rate [--quick] [--json FILE] [--data FOLDER] [--tasks NAME ...] [--seeds 2]
                                            [--curves FILE]

A task is a network and a data set: the synthetic one, or the photographs of --data (class folders, or a data set).
The proposal is that of `lr-find` with its default options. The network is then trained with the proposal and with its
neighbours by factors of 2, until both neighbours of the best rate are worse.

The value of a row is the mean top-1 validation error of the seeds with the proposed rate. The peer is that of the best
rate, which is the minimum of several noisy errors.
"""

import pathlib
import re
import statistics
import sys
import tempfile
from typing import Any, NamedTuple

from alexnet.native import compiler
from benchmarks.accuracy import networks
from benchmarks.accuracy.__main__ import add_data_options, errors_of, trained
from benchmarks.accuracy.large_batch import tuned
from benchmarks.accuracy.trainings import Curves, command_line, made_data, name_of
from benchmarks.harness import report
from benchmarks.harness.program import TOP, run

PROPOSAL = re.compile(r"proposal: learning_rate=(\S+)")


class Task(NamedTuple):
    """A training.

    settings  those that differ from benchmarks.accuracy.trainings.command_line
    epochs    of a training
    given     whether its images are those of --data
    """

    settings: dict[str, Any]
    epochs: int
    given: bool = False


def model(name, **more):
    return {"model": name, **more}


SMALL, NORMALISED = name_of(networks.Small), name_of(networks.BatchNormalised)
TASKS = {
    "small AlexNet, synthetic": Task(model(SMALL, batch_size=16), 8),
    "small AlexNet, photographs": Task(model(SMALL), 6, given=True),
    "batch normalisation, synthetic": Task(model(NORMALISED, batch_size=16), 6),
    "batch normalisation, photographs": Task(model(NORMALISED), 6, given=True),
    "alexnet, synthetic": Task(model("alexnet", batch_size=16), 3),
    "bvlc_googlenet, synthetic": Task(model("bvlc_googlenet", batch_size=16), 3),
}


def proposed(task, data, folder):
    """Return the rate that lr-find proposes for a task.

    Raises:
        RuntimeError: it proposes none.
    """
    output = run([sys.executable, "-m", "alexnet", "lr-find",
                  *command_line(data, task.epochs, random_seed=1, **task.settings), "--to", folder], cwd=TOP)
    if not (found := PROPOSAL.search(output)):
        raise RuntimeError(f"lr-find proposes no rate: {output}")
    return float(found[1])


def task_row(name, data, folder, seeds, curves):
    """Return the row of a task."""
    task = TASKS[name]
    rate = curves.get(f"{name}, proposal", 1, lambda: proposed(task, data, folder))

    def errors(rate):
        changes = task.settings | {"learning_rate": rate}
        return [curve[-1] for curve in errors_of(
            trained(curves, f"{name}, rate {rate:g}", seeds, data, task.epochs, **changes))]

    best = tuned(rate, lambda rate: statistics.fmean(errors(rate)))
    ours, theirs = errors(rate), errors(best)
    return report.row(name, ours, "%", peer=statistics.median(theirs), peer_is=f"rate {best:g}", rate=rate,
                      difference=statistics.fmean(ours) - statistics.fmean(theirs))


def rows(options):
    """Yield all rows."""
    compiler.use_threads(1)                      # so that tasks can run side by side
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        curves = Curves(options.curves)
        found = {}
        for name in options.tasks or TASKS:
            source = options.data if TASKS[name].given else None
            if TASKS[name].given and source is None:
                yield report.not_measured(name, "needs --data")
                continue
            if source not in found:
                sizes = (256, 32) if options.quick else (2000, 400)
                found[source] = made_data(source, folder / str(len(found)), sizes)
            yield task_row(name, found[source], folder / "lr_find", options.seeds, curves)


def add_options(parser):
    add_data_options(parser, seeds=2)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="NAME", help="tasks; default: all")


def main(arguments=None):
    quick = "one seed and task on 256 synthetic images"
    return report.main(rows, __doc__, quick, {"seeds": 1, "tasks": [next(iter(TASKS))]}, add_options,
                       arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
