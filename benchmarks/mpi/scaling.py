"""Training over MPI by number of ranks and strategy: seconds per 5,120 images = train + comm + sync.

python -m benchmarks.mpi.scaling [--quick] [--json FILE] [--ranks 1 2 4] [--models alexnet googlenet] [--batch 32]

Each figure is from one MPI job of train.py with rule bsp, on batch files of synthetic images (zeros), without
validation. It is the median over all steps except the first; the time of a step is the recorder's mean over all ranks.
train is the total time minus comm and sync.

All ranks share this machine's cores, so train cannot decrease with the number of ranks. If there are more ranks than
cores, ranks also wait for cores, including during comm. comm is therefore the cost of an exchange (here through shared
memory) only if there are at most as many ranks as cores. If each rank has its own core or GPU, `times as fast` is the
speed-up.

Theano-MPI's published figures on K80 GPUs follow for comparison. benchmarks.mpi.strategies measures the strategies
without training.

Source: Ma et al. 2016, and Theano-MPI's README (its tables of 5,120 images).
"""

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
from alexnet.run.recorder import read_records
from alexnet.training import timing
from benchmarks.harness import report
from benchmarks.harness.mpi import NEEDED, VARIABLES, mpiexec
from benchmarks.harness.program import TOP, environment, last_line
from multigpu import train, worker

STRATEGIES = ("ar", "asa32", "asa16", "copper", "copper16", "peer")
IMAGES = 256                                     # in the only batch file: batches of 32 for 8 ranks
PROGRAM = "benchmarks.mpi.scaling"               # module that each rank runs
GRACE = 20.0                                     # seconds that a terminated job has to exit
MINUTES = 9.0                                    # no job is started later than this
# Theano-MPI's README: {network: {number of K80 GPUs: (train, comm)}}, seconds per 5,120 images
PUBLISHED = {
    "AlexNet": {1: (20.50, 0), 2: (10.35, 0.78), 4: (5.13, 0.54), 8: (2.63, 0.61)},
    "GoogLeNet": {1: (63.89, 0), 2: (31.40, 1.00), 4: (15.51, 0.71), 8: (7.69, 0.80)},
    "VGG16": {1: (343.37, 0), 8: (43.29, 5.41)},
    "ResNet50": {1: (163.15, 0), 8: (20.12, 0.57)},
}


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


def rank(*settings):
    """Main function of a rank: train.py with these settings and train_with_steps()."""
    return train.main(settings, train_with_steps)


def train_with_steps(*arguments):
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
        rank = [sys.executable, "-m", "mpi4py", "-m", PROGRAM, "--worker"]
        command = [mpiexec(), "-n", str(job.ranks), *rank, *(f"{key}={value}" for key, value in given.items())]
        run_job(command, seconds)
        return [record for record in read_records(os.path.join(output, "run")) if record["kind"] == "speed"][1:]


def run_job(command, seconds, variables=None):
    """Run the command of an MPI job.

    Args:
        variables: environment variables to add.

    Raises:
        RuntimeError: the job has failed or has not finished within `seconds`.
    """
    with subprocess.Popen(
        command, cwd=TOP, env=environment() | VARIABLES | (variables or {}), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            stop(process)
            raise RuntimeError(f"not finished within {seconds:.0f} s") from None
    if process.returncode:
        raise RuntimeError(f"the job exited with status {process.returncode}: {first_error(errors)}")


def stop(mpiexec):
    """Terminate mpiexec and its ranks after their current step; kill mpiexec if that takes more than GRACE seconds."""
    mpiexec.terminate()
    try:
        mpiexec.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        mpiexec.kill()


def first_error(errors):
    """Return the first error line printed by a rank or by train.py, otherwise the last line."""
    return next((line for line in errors.splitlines() if line.startswith(("rank ", "train.py: "))), last_line(errors))


def jobs(models, ranks, batch, steps):
    """Yield a Job for each model on one rank, then one per strategy for each larger number of ranks."""
    for model in models:
        for n in sorted(ranks):
            for strategy in STRATEGIES if n > 1 else ("auto",):
                yield Job(model, n, strategy, batch, steps)


# ---- rows


def row_of(job, records, one_rank):
    """Return the row of a job: seconds per 5,120 images, and their parts.

    Args:
        job: the measured Job.
        records: its records of kind speed.
        one_rank: seconds per 5,120 images on one rank; None if not measured.
    """
    row = report.row(job.name, [record["seconds"] for record in records], "s")
    parts = {part: statistics.median(record[part] for record in records) for part in ("comm", "sync")}
    faster = {"times_as_fast": one_rank / row["value"]} if one_rank and job.ranks > 1 else {}
    return row | {"train": row["value"] - parts["comm"] - parts["sync"], **parts, **faster}


def published_rows():
    """Yield the rows of Theano-MPI's published table."""
    for model, table in PUBLISHED.items():
        one_gpu, _ = table[1]
        for gpus, (training, comm) in table.items():
            faster = {"times_as_fast": one_gpu / (training + comm)} if gpus > 1 else {}
            where = "1 K80 GPU" if gpus == 1 else f"{gpus} K80 GPUs"
            yield {"name": f"Theano-MPI: {model}, {where}", "value": training + comm, "unit": "s", "train": training,
                   "comm": comm, **faster}


def measured_rows(todo, minutes):
    """Yield a row per job as soon as it is measured, then the published rows.

    The row of a job that fails, or for which no time is left, contains the reason.
    """
    ends, one_rank = time.monotonic() + 60 * minutes, {}
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(pathlib.Path(folder, "set"))
        for job in todo:
            left = ends - time.monotonic()
            if left < 0:
                yield report.not_measured(job.name, f"not started within {minutes:g} minutes")
                continue
            try:
                row = row_of(job, measure(job, data, left + 30), one_rank.get(job.model))
            except RuntimeError as error:
                yield report.not_measured(job.name, str(error))
                continue
            if job.ranks == 1:
                one_rank[job.model] = row["value"]
            yield row
    yield from published_rows()


def rows(options):
    if mpiexec() is None:
        return [report.not_measured("scaling", NEEDED)]
    todo = jobs(options.models, options.ranks, options.batch, options.steps)
    if options.quick:
        todo = [job for job in todo if job.strategy in ("auto", "asa32", "peer")]
    return measured_rows(todo, options.minutes)


def add_options(parser):
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="+", default=["alexnet", "googlenet"])
    parser.add_argument("--batch", type=int, default=32, help="of each rank (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="that are measured of each (%(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no job is started later (%(default)s)")


def main():
    quick = {"models": ["alexnet"], "ranks": [1, 2], "batch": 8, "steps": 2, "minutes": 0.7}
    description = "AlexNet, 1 and 2 ranks, batch 8, only asa32 and peer"
    return report.main(rows, __doc__, description, quick, add_options, rank)


if __name__ == "__main__":
    raise SystemExit(main())
