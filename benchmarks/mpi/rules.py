"""Real training runs on two hosts by rule: seconds, validation error, and bytes sent over the link.

python -m benchmarks.mpi.rules [--quick] [--json FILE] [--curves FILE] [--link NAME] [--only easgd ...] [--runs 1]

Each configuration is an MPI job of train.py: two workers, and rank 0 as a server for the rules that have one. On two
hosts each has one worker, and the server is on the first host, so only the pushes of the second worker use the link.
All jobs have the same synthetic data set, initial weights, batch size, learning rate and number of epochs. Nothing was
tuned for a rule. Jobs take turns if there are several runs. Each worker computes on one thread.

The network is a small AlexNet of 1.9 million weights (7.6 MB), 95 % of them in dense layers, so that computing a step
and sending its gradients at 1 Gbit/s take about as long as each other, as with AlexNet at batch 128.

The value of a row is the time from the start of training to the last validation, which is part of it. `step` is the
mean time of a step, of which `calc`, `sync`, `comm` and `wait` are parts; `hidden` is the time of an exchange during
`calc`. `link MB` counts the bytes that left both hosts in this time, with headers. `error` is the top-1 validation
error after the last epoch, `lowest` that of the best epoch. `seconds to` and `MB to` are the time and the bytes until
the error is first at most 20 %.

The environment variable MPIEXEC replaces the command that starts the ranks, for ranks on several hosts:

python -m tests.system.two_hosts --rate 1gbit python -m benchmarks.mpi.rules --link "1 Gbit/s" --curves 1gbit.json
python -m benchmarks.mpi.rules_figure 1gbit.json 100mbit.json docs/pictures/rules_on_links.png
"""

import json
import math
import os
import pathlib
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from typing import NamedTuple

from alexnet.models import Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten, he
from alexnet.run.recorder import RunRecorder, read_records
from alexnet.training.timing import TIMES
from benchmarks.harness import report
from benchmarks.harness.mpi import NEEDED, mpiexec
from benchmarks.harness.program import TOP, run
from benchmarks.mpi.scaling import run_job
from benchmarks.mpi.strategies import bytes_sent
from multigpu import train, worker

TRAIN, VALIDATION, PER_FILE = 1920, 400, 64      # images
EPOCHS, BATCH = 8, 32                            # 30 steps of each worker in an epoch
TARGET = 0.2                                     # top-1 validation error of the columns "seconds to" and "MB to"
LIMIT = 900.0                                    # seconds of a job
PROGRAM = "benchmarks.mpi.rules"                 # module that each rank runs
COMMON = {
    "model": "benchmarks.mpi.rules:SmallAlexNet", "batch_size": BATCH, "n_epochs": EPOCHS, "learning_rate": 0.001,
    "lr_policy": "constant", "snapshot_freq": 1000, "devices": "cpu", "threads": 1,
}
PERIOD, LONG_PERIOD = 10, 30                     # steps between two exchanges; LONG_PERIOD: of DiLoCo, an epoch
CONFIGURATIONS = {                               # name -> (number of servers, settings)
    "bsp, weights": (0, {"rule": "bsp", "exchange_what": "weights"}),
    "bsp, gradients, overlapped": (0, {"rule": "bsp", "exchange_what": "gradients"}),
    "bsp, gradients, asa16": (0, {"rule": "bsp", "exchange_what": "gradients", "exchange": "asa16"}),
    "bsp, factors": (0, {"rule": "bsp", "exchange_what": "factors"}),
    "bsp, every 10 steps": (0, {"rule": "bsp", "exchange_what": "weights", "average_every": PERIOD}),
    "slowmo": (0, {"rule": "slowmo", "slowmo_steps": PERIOD}),
    "DiLoCo": (0, {
        "rule": "slowmo", "slowmo_steps": LONG_PERIOD, "slowmo_nesterov": True, "slowmo_alpha": 0.7,
        "slowmo_beta": 0.9, "slowmo_buffers": "maintain",
    }),
    "easgd": (1, {"rule": "easgd", "easgd_tau": PERIOD}),
    "gosgd": (0, {"rule": "gosgd", "gosgd_p": 1 / PERIOD}),
    "asgd": (1, {"rule": "asgd", "n_sync": PERIOD}),
    "async DiLoCo": (1, {
        "rule": "asgd", "n_sync": LONG_PERIOD, "server_update": "delayed_nesterov", "server_scale": 0.3,
    }),
}


class SmallAlexNet(Model):
    """A network with AlexNet's kinds of layers, 3 % of its weights and 2 % of its multiplications."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 32, size=11, stride=8, pool=(3, 2), std=he),      LRN(),              # 32 x 13 x 13
            Conv(rng, 32, 64, size=5, pad=2, pool=(3, 2), std=he),         LRN(),              # 64 x 6 x 6
            Conv(rng, 64, 64, size=3, pad=1, std=he),                      Flatten(),
            Dense(rng, 2304, 640, std=he, bias=0.0),                       Dropout(dropout_rate),
            Dense(rng, 640, 512, std=he, bias=0.0),                        Dropout(dropout_rate),
            Dense(rng, 512, classes, relu=False, std=0.01, bias=0.0),
        )


# ---- code of a rank


def rank(*settings):
    """Main function of a rank: train.py with these settings and train_on_link()."""
    return train.main(settings, train_on_link)


def train_on_link(*arguments):
    """Run multigpu.worker.work with a LinkRecorder at rank 0."""
    worker.RunRecorder = LinkRecorder
    worker.work(*arguments)


class LinkRecorder(RunRecorder):
    """A recorder that also records, after each validation, the seconds and the bytes since the start of training.

    Workers begin after they have compiled the network, a server before them. The start is therefore computed from the
    times of the workers' first steps.
    """

    def open(self, folder):
        super().open(folder)
        self._before = link_bytes()
        self._start = math.inf
        self._trained = defaultdict(float)       # seconds of the steps of each worker

    def train_iteration(self, *, worker=None, **figures):
        super().train_iteration(worker=worker, **figures)
        self._trained[worker] += self.window[-1]["seconds"]
        self._start = min(self._start, time.perf_counter() - self._trained[worker])

    def epoch(self, *, epoch, iteration, **figures):
        super().epoch(epoch=epoch, iteration=iteration, **figures)
        seconds, nbytes = time.perf_counter() - self._start, link_bytes() - self._before
        self.record("link", iteration=iteration, epoch=epoch, seconds=seconds, bytes=nbytes)


def link_bytes():
    """Return the bytes that this host has sent and received so far, with headers, on all interfaces but loopback."""
    interfaces = [each for each in pathlib.Path("/sys/class/net").iterdir() if each.name != "lo"]
    return bytes_sent() + sum(int((each / "statistics" / "rx_bytes").read_text()) for each in interfaces)


# ---- the jobs


class Measured(NamedTuple):
    """One job: the validations as (seconds, bytes on the link, top-1 error), and the mean TIMES of a step."""

    curve: list[tuple[float, int, float]]
    times: dict[str, float]


def make_data(folder):
    """Make the synthetic data set; return its folder."""
    counts = {"--train": TRAIN, "--validation": VALIDATION, "--batch-size": PER_FILE}
    run([sys.executable, "-m", "preprocess", "synthetic", folder, *sum(counts.items(), ())], cwd=TOP)
    return folder


def measure(settings, servers, data):
    """Run a job and return what it Measured.

    Raises:
        RuntimeError: the job has failed or has not finished within LIMIT.
    """
    with tempfile.TemporaryDirectory() as output:
        given = {"data": data, "output": output, "run_name": "run", **COMMON, **settings}
        start = shlex.split(os.environ.get("MPIEXEC", "")) or [mpiexec()]
        command = [*start, "-n", str(2 + servers), sys.executable, "-m", "mpi4py", "-m", PROGRAM, "--worker"]
        run_job([*command, *(f"{key}={value}" for key, value in given.items())], LIMIT, {"OMP_NUM_THREADS": "1"})
        return measured(read_records(pathlib.Path(output, "run")))


def measured(records):
    """Return the Measured of the records of a run."""
    of_kind = {kind: [each for each in records if each["kind"] == kind] for kind in ("train", "validation", "link")}
    curve = [
        (link["seconds"], link["bytes"], validation["top1_error"])
        for link, validation in zip(of_kind["link"], of_kind["validation"], strict=True)
    ]
    return Measured(curve, {name: statistics.fmean(step[name] for step in of_kind["train"]) for name in TIMES})


# ---- rows


def row_of(name, jobs):
    """Return the row of a configuration from the Measured of its jobs."""
    row = report.row(name, [job.curve[-1][0] for job in jobs], "s")
    for time_of in TIMES:
        row["step" if time_of == "seconds" else time_of] = statistics.median(job.times[time_of] for job in jobs)
    row["link_MB"] = statistics.median(job.curve[-1][1] for job in jobs) / 1e6
    row["error"] = statistics.median(job.curve[-1][2] for job in jobs)
    row["lowest"] = statistics.median(min(error for *_, error in job.curve) for job in jobs)
    reached = [next((point for point in job.curve if point[2] <= TARGET), None) for job in jobs]
    if all(reached):
        row["seconds_to"] = statistics.median(seconds for seconds, *_ in reached)
        row["MB_to"] = statistics.median(nbytes for _, nbytes, _ in reached) / 1e6
    return row


def measure_in_turn(options, data):
    """Return {name: list of Measured} of the chosen configurations, and {name: reason} of those that failed."""
    jobs, failed = {name: [] for name in options.only}, {}
    for _ in range(options.runs):
        for name in options.only:
            servers, settings = CONFIGURATIONS[name]
            try:
                jobs[name].append(measure(settings, servers, data))
            except RuntimeError as error:
                failed[name] = str(error)
                continue
            seconds, nbytes, error = jobs[name][-1].curve[-1]
            print(f"{name}: {seconds:.1f} s, {nbytes / 1e6:.1f} MB, error {error:.1%}", file=sys.stderr, flush=True)
    return jobs, failed


def rows(options):
    if mpiexec() is None:
        yield report.not_measured("rules", NEEDED)
        return
    prefix = f"{options.link}, " if options.link else ""
    with tempfile.TemporaryDirectory() as folder:
        jobs, failed = measure_in_turn(options, options.data or make_data(os.path.join(folder, "set")))
    if options.curves:
        curves = {name: [job.curve for job in found] for name, found in jobs.items()}
        options.curves.write_text(json.dumps({"link": options.link, "curves": curves}) + "\n", encoding="utf-8")
    for name in options.only:
        yield report.not_measured(prefix + name, failed[name]) if name in failed else row_of(prefix + name, jobs[name])


def add_options(parser):
    names = list(CONFIGURATIONS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--runs", type=int, default=1, help="of each configuration (%(default)s)")
    parser.add_argument("--data", help="folder of a data set; default: a synthetic one is made")
    parser.add_argument("--link", default="", help="name of the link, for the rows and the figure")
    parser.add_argument("--curves", type=pathlib.Path, metavar="FILE", help="write the validations, for rules_figure")


def main():
    quick = {"only": ["bsp, weights"], "runs": 1}
    return report.main(rows, __doc__, "only rule bsp", quick, add_options, rank)


if __name__ == "__main__":
    raise SystemExit(main())
