"""Training over MPI on more and more ranks: seconds per 5,120 images = train + comm + sync, for each strategy.

python -m benchmarks.scaling [--quick] [--json FILE] [--ranks 1 2 4] [--models alexnet googlenet] [--batch 32]

Each figure is an MPI job of train.py, rule bsp, on batch files of made images (zeros), validation off: the median of
its steps but for the first, each the mean over all ranks, as the recorder has it.  train is all but comm and sync.

All ranks share this machine's cores, so train cannot fall with their number, and where they outnumber the cores they
wait for turns, in comm too: only comm of at most as many ranks as cores is to be read as what an exchange costs, here
by way of shared memory.  Where there is a core, or a GPU, for each rank, `times as fast` is the speed-up.

Theano-MPI's own figures, on K80 GPUs, are below for comparison.  A model of what exchanging costs on other links:
benchmarks.cost_model; the strategies alone: benchmarks.strategies.

Source: Ma et al. 2016, and Theano-MPI's README (its tables of 5,120 images).
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

import train
from alexnet import hkl, stopwatch
from alexnet.recorder import read_records
from benchmarks import links, report
from benchmarks.mpi import NEEDED, VARIABLES, mpiexec
from benchmarks.program import environment, last_line
from multigpu import worker

STRATEGIES = ("ar", "asa32", "asa16", "copper", "copper16", "peer")
IMAGES = 256                                     # of the one batch file: 8 ranks' batches of 32
PROGRAM = "benchmarks.scaling"                   # of a rank
GRACE = 20.0                                     # seconds in which a job ends that is asked to
ROOT = pathlib.Path(__file__).parents[1]
MINUTES = 9.0                                    # after which no further job is started
# what benchmarks.links does not model: the other networks of the published table
OTHERS = {"VGG16": {1: (343.37, 0), 8: (43.29, 5.41)}, "ResNet50": {1: (163.15, 0), 8: (20.12, 0.57)}}


class Job(NamedTuple):
    """What is measured: a model on so many ranks by a strategy, of so many steps of a batch each."""

    model: str
    ranks: int
    strategy: str
    batch: int
    steps: int

    @property
    def name(self):
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks, {self.strategy}"
        return f"{self.model}, batch {self.batch}, {ranks}"


# ---- a rank of a job


def work(*arguments):
    """multigpu.worker.work, where each step is a lap, so that the times of all ranks are recorded of each."""
    stopwatch.LAP = 1
    worker.work(*arguments)


# ---- the jobs


def make_data(folder):
    """A data set in upstream's layout: IMAGES black images to train on, 8 to validate on."""
    for part in ("labels", "misc"):
        (folder / part).mkdir(parents=True)
    for half, n in (("train", IMAGES), ("val", 8)):
        (folder / f"{half}_hkl_b{n}_b_{n}").mkdir()
        hkl.write(folder / f"{half}_hkl_b{n}_b_{n}" / "0000.hkl", np.zeros((3, 256, 256, n), "uint8"))
        np.save(folder / "labels" / f"{half}_labels.npy", np.arange(n))
    np.save(folder / "misc" / "img_mean.npy", np.zeros((3, 256, 256), "float32"))
    return folder


def measure(job, data, seconds):
    """Times of each step but the first, as records of kind speed; raises RuntimeError when the job has failed."""
    with tempfile.TemporaryDirectory() as output:
        given = {
            "data": data, "output": output, "run_name": "run", "model": job.model, "classes": 1000, "rule": "bsp",
            "exchange": job.strategy, "batch_size": job.batch, "n_iterations": job.steps + 1, "n_epochs": 1000,
            "validation": False, "snapshot_freq": 1000, "learning_rate": 1e-6, "devices": "cpu",
        }  # fmt: skip
        rank = [sys.executable, "-m", "mpi4py", "-m", PROGRAM, "--rank"]
        command = [mpiexec(), "-n", str(job.ranks), *rank, *(f"{key}={value}" for key, value in given.items())]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment() | VARIABLES, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            try:
                _, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                stop(process)
                raise RuntimeError(f"not done within {seconds:.0f} s") from None
        if process.returncode:
            raise RuntimeError(f"the job ended with status {process.returncode}: {what_was_wrong(errors)}")
        return [record for record in read_records(os.path.join(output, "run")) if record["kind"] == "speed"][1:]


def stop(mpiexec):
    """End mpiexec and its ranks: after their step, or at once when that takes too long."""
    mpiexec.terminate()
    try:
        mpiexec.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        mpiexec.kill()


def what_was_wrong(errors):
    """The first line that a rank of ours has said, else the last of all."""
    return next((line for line in errors.splitlines() if line.startswith(("rank ", "train.py: "))), last_line(errors))


def jobs(models, ranks, batch, steps):
    """Each model on one rank, then on more by each strategy."""
    for model in models:
        for n in sorted(ranks):
            for strategy in STRATEGIES if n > 1 else ("auto",):
                yield Job(model, n, strategy, batch, steps)


# ---- rows


def row_of(job, records, alone):
    """Seconds per 5,120 images, and of what; alone: those of one rank, None if not measured."""
    row = report.row(job.name, [record["seconds"] for record in records], "s")
    parts = {part: statistics.median(record[part] for record in records) for part in ("comm", "sync")}
    faster = {"times_as_fast": alone / row["value"]} if alone and job.ranks > 1 else {}
    return row | {"train": row["value"] - parts["comm"] - parts["sync"], **parts, **faster}


def published_rows():
    """Theano-MPI's table."""
    for model, table in (links.PUBLISHED | OTHERS).items():
        alone, _ = table[1]
        for gpus, (training, comm) in table.items():
            faster = {"times_as_fast": alone / (training + comm)} if gpus > 1 else {}
            where = "1 K80 GPU" if gpus == 1 else f"{gpus} K80 GPUs"
            yield {"name": f"Theano-MPI: {model}, {where}", "value": training + comm, "unit": "s", "train": training,
                   "comm": comm, **faster}  # fmt: skip


def rows(todo, minutes):
    """A row of each job, as it is measured, then those published; what there is no time for says so."""
    ends, alone = time.monotonic() + 60 * minutes, {}
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(pathlib.Path(folder, "set"))
        for job in todo:
            left = ends - time.monotonic()
            if left < 0:
                yield report.not_measured(job.name, f"the {minutes:g} minutes were over")
                continue
            try:
                row = row_of(job, measure(job, data, left + 30), alone.get(job.model))
            except RuntimeError as error:
                yield report.not_measured(job.name, str(error))
                continue
            if job.ranks == 1:
                alone[job.model] = row["value"]
            yield row
    yield from published_rows()


def show(row):
    if row["value"] is None:
        return print(f"{row['name']}: {row['note']}", flush=True)
    parts = " ".join(f"{row[part]:8.2f}" if part in row else " " * 8 for part in ("value", "train", "comm", "sync"))
    faster = f"{row['times_as_fast']:6.2f}×" if "times_as_fast" in row else ""
    print(f"{row['name']:44} {parts} {faster}", flush=True)


def options_of(arguments):
    parser = report.parser(__doc__, quick="AlexNet, 1 and 2 ranks, batch 8, asa32 and peer alone")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="+", default=["alexnet", "googlenet"])
    parser.add_argument("--batch", type=int, default=32, help="of each rank (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="that are measured of each (%(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no job is started later (%(default)s)")
    parser.add_argument("--rank", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = options_of(arguments)
    if options.rank is not None:
        return train.main(options.rank, "benchmarks.scaling:work")
    if mpiexec() is None:
        report.write([report.not_measured("scaling", NEEDED)], options.json)
        return 0
    todo = jobs(options.models, options.ranks, options.batch, options.steps)
    if options.quick:
        todo = [job for job in jobs(["alexnet"], [1, 2], 8, 2) if job.strategy in ("auto", "asa32", "peer")]
    found = []
    print(f"{'seconds per 5,120 images':44} {'all':>8} {'train':>8} {'comm':>8} {'sync':>8}")
    for row in rows(todo, 0.7 if options.quick else options.minutes):
        found.append(row)
        show(row)
        report.write(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
