"""Training over MPI by number of ranks and strategy: seconds per 5,120 images = train + comm + sync.

python -m benchmarks.scaling [--quick] [--json FILE] [--ranks 1 2 4] [--models alexnet googlenet] [--batch 32]

Each figure is from one MPI job of train.py with rule bsp, on batch files of synthetic images (zeros), without
validation. It is the median over all steps except the first; the time of a step is the recorder's mean over all ranks.
train is the total time minus comm and sync.

All ranks share this machine's cores, so train cannot decrease with the number of ranks. If there are more ranks than
cores, ranks also wait for cores, including during comm. comm is therefore the cost of an exchange (here through shared
memory) only if there are at most as many ranks as cores. If each rank has its own core or GPU, `times as fast` is the
speed-up.

Theano-MPI's published figures on K80 GPUs follow for comparison. benchmarks.cost_model models the cost of exchanges
over other links; benchmarks.strategies measures the strategies without training.

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

from alexnet.data import batch_file
from alexnet.run import timing
from alexnet.run.recorder import read_records
from benchmarks import links, report
from benchmarks.mpi import NEEDED, VARIABLES, mpiexec
from benchmarks.program import environment, last_line
from multigpu import train, worker

STRATEGIES = ("ar", "asa32", "asa16", "copper", "copper16", "peer")
IMAGES = 256                                     # in the only batch file: batches of 32 for 8 ranks
PROGRAM = "benchmarks.scaling"                   # module that each rank runs
GRACE = 20.0                                     # seconds that a terminated job has to exit
ROOT = pathlib.Path(__file__).parents[1]
MINUTES = 9.0                                    # no job is started later than this
# the networks of the published table that benchmarks.links does not model
OTHERS = {"VGG16": {1: (343.37, 0), 8: (43.29, 5.41)}, "ResNet50": {1: (163.15, 0), 8: (20.12, 0.57)}}


class Job(NamedTuple):
    """One measurement: a model, the number of ranks, the strategy, the batch size per rank, and the number of steps."""

    model: str
    ranks: int
    strategy: str
    batch: int
    steps: int

    @property
    def name(self):
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks, {self.strategy}"
        return f"{self.model}, batch {self.batch}, {ranks}"


# ---- code of a rank


def work(*arguments):
    """Run multigpu.worker.work with a timing window of one step, to record the times of all ranks for each step."""
    timing.LAP = 1
    worker.work(*arguments)


# ---- the jobs


def make_data(folder):
    """Write a data set in upstream's layout, with IMAGES black training images and 8 validation images."""
    for part in ("labels", "misc"):
        (folder / part).mkdir(parents=True)
    for half, n in (("train", IMAGES), ("val", 8)):
        (folder / f"{half}_hkl_b{n}_b_{n}").mkdir()
        batch_file.write(folder / f"{half}_hkl_b{n}_b_{n}" / "0000.hkl", np.zeros((3, 256, 256, n), "uint8"))
        np.save(folder / "labels" / f"{half}_labels.npy", np.arange(n))
    np.save(folder / "misc" / "img_mean.npy", np.zeros((3, 256, 256), "float32"))
    return folder


def measure(job, data, seconds):
    """Run a job and return its records of kind speed, one per step except the first.

    Raises:
        RuntimeError: the job has failed or has not finished within `seconds`.
    """
    with tempfile.TemporaryDirectory() as output:
        given = {
            "data": data, "output": output, "run_name": "run", "model": job.model, "classes": 1000, "rule": "bsp",
            "exchange": job.strategy, "batch_size": job.batch, "n_iterations": job.steps + 1, "n_epochs": 1000,
            "validation": False, "snapshot_freq": 1000, "learning_rate": 1e-6, "devices": "cpu",
        }
        rank = [sys.executable, "-m", "mpi4py", "-m", PROGRAM, "--rank"]
        command = [mpiexec(), "-n", str(job.ranks), *rank, *(f"{key}={value}" for key, value in given.items())]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment() | VARIABLES, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                _, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                stop(process)
                raise RuntimeError(f"not done within {seconds:.0f} s") from None
        if process.returncode:
            raise RuntimeError(f"the job ended with status {process.returncode}: {what_was_wrong(errors)}")
        return [record for record in read_records(os.path.join(output, "run")) if record["kind"] == "speed"][1:]


def stop(mpiexec):
    """Terminate mpiexec and its ranks after their current step; kill mpiexec if that takes more than GRACE seconds."""
    mpiexec.terminate()
    try:
        mpiexec.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        mpiexec.kill()


def what_was_wrong(errors):
    """Return the first error line printed by a rank or by train.py, otherwise the last line."""
    return next((line for line in errors.splitlines() if line.startswith(("rank ", "train.py: "))), last_line(errors))


def jobs(models, ranks, batch, steps):
    """Yield a Job for each model on one rank, then one per strategy for each larger number of ranks."""
    for model in models:
        for n in sorted(ranks):
            for strategy in STRATEGIES if n > 1 else ("auto",):
                yield Job(model, n, strategy, batch, steps)


# ---- rows


def row_of(job, records, alone):
    """Return the row of a job: seconds per 5,120 images, and their parts.

    Args:
        job: the measured Job.
        records: its records of kind speed.
        alone: seconds per 5,120 images on one rank; None if not measured.
    """
    row = report.row(job.name, [record["seconds"] for record in records], "s")
    parts = {part: statistics.median(record[part] for record in records) for part in ("comm", "sync")}
    faster = {"times_as_fast": alone / row["value"]} if alone and job.ranks > 1 else {}
    return row | {"train": row["value"] - parts["comm"] - parts["sync"], **parts, **faster}


def published_rows():
    """Yield the rows of Theano-MPI's published table."""
    for model, table in (links.PUBLISHED | OTHERS).items():
        alone, _ = table[1]
        for gpus, (training, comm) in table.items():
            faster = {"times_as_fast": alone / (training + comm)} if gpus > 1 else {}
            where = "1 K80 GPU" if gpus == 1 else f"{gpus} K80 GPUs"
            yield {"name": f"Theano-MPI: {model}, {where}", "value": training + comm, "unit": "s", "train": training,
                   "comm": comm, **faster}


def rows(todo, minutes):
    """Yield a row per job as soon as it is measured, then the published rows.

    The row of a job that fails, or for which no time is left, contains the reason.
    """
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
