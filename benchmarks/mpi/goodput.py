"""Goodput: the share of the undisturbed step rate that a run keeps when its workers are killed now and then.

python -m benchmarks.mpi.goodput [--quick] [--json FILE] [--minutes 3] [--mean 60 20] [--runs NAME ...]

Each run trains on synthetic images, with two workers (easgd and asgd: and a server) and one computing thread in each.
The first run of a configuration is undisturbed and determines the number of steps: as many as fit into --minutes. The
others do the same steps while a random worker gets SIGKILL, at times that are drawn from an exponential distribution
with mean --mean seconds. Time counts from the creation of the run's folder, after compilation, to the end of the
program. The goodput is the ratio of the rates, in images per second, of the disturbed and of the undisturbed run.
Images whose steps are lost and done again count once; with rule asgd, a dead client is not replaced. Checkpoints are
saved every ten seconds. `lost per kill` is the additional time divided by the number of kills; L seconds at a mean of M
seconds are a goodput of M / (M + L).

For a rule in lockstep, `weights` states whether the final weights equal those of the undisturbed run to the bit.
"""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from alexnet.run import checkpoint_format
from alexnet.run.recorder import read_records
from benchmarks.harness import report
from benchmarks.harness.mpi import NEEDED, VARIABLES, mpiexec
from benchmarks.harness.program import TOP, environment, last_line, run

SNAPSHOT = 10.0                                  # seconds between two checkpoints
TIMEOUT = 1800.0                                 # seconds until a run is regarded as hung
PROBE = 12                                       # steps of the run that measures the time of a step


class Configuration(NamedTuple):
    """Settings of a run, and the number of its ranks if MPI starts them. exact: the final weights are reproducible."""

    settings: tuple[str, ...]
    ranks: int = 0
    exact: bool = True


CONFIGURATIONS = {
    "bsp, gradients, killed worker replaced": Configuration(("exchange_what=gradients",)),
    "bsp, weights and momentum, all restarted": Configuration(("exchange_what=weights_and_momentum",)),
    "slowmo, all restarted": Configuration(("rule=slowmo", "slowmo_steps=8")),
    "bsp over MPI, all restarted": Configuration(("exchange_what=gradients",), 2),
    "easgd, all restarted": Configuration(("rule=easgd",), 3, exact=False),
    "gosgd, all restarted": Configuration(("rule=gosgd",), 2, exact=False),
    "asgd, dead clients dropped": Configuration(("rule=asgd",), 3, exact=False),
}


class Result(NamedTuple):
    """A finished run: images of its steps, seconds, number of kills, and the folder."""

    images: int
    seconds: float
    kills: int
    folder: pathlib.Path


def train(name, config, folder, options, steps, snapshot, mean=None):
    """Run train.py for a number of steps, and kill workers at a mean interval; return the Result.

    Raises:
        RuntimeError: the run has failed.
    """
    start = [sys.executable, "train.py"]
    if config.ranks:
        start = [sys.executable, "-m", "multigpu", "restart", mpiexec(), "-n", config.ranks, sys.executable, "-m",
                 "mpi4py", "train.py"]
    run_name = name.split(",")[0].replace(" ", "_") + f"_{mean or 'undisturbed'}"
    settings = [
        f"model={options.model}", f"batch_size={options.batch}", f"data={folder / 'set'}", f"output={folder}",
        f"run_name={run_name}", "n_epochs=1000000", f"n_iterations={steps}", f"snapshot_iterations={snapshot}",
        "keep_snapshots=2", "validation=false", "max_restarts=1000", "learning_rate=0.001", *config.settings,
    ]
    if not config.ranks:
        settings.append("devices=cpu,cpu")
    errors = folder / f"{run_name}.errors"
    with errors.open("w") as error:
        process = subprocess.Popen(
            list(map(str, [*start, *settings])), cwd=TOP, stdout=subprocess.DEVNULL, stderr=error,
            env=environment() | VARIABLES | {"OMP_NUM_THREADS": "1"},
        )
        try:
            seconds, kills = disturb(process, folder / run_name / "train.csv", mean, random.Random(f"{name} {mean}"))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise RuntimeError(f"{name}: status {process.returncode}: {last_line(errors.read_text())}")
    images = sum(record["images"] for record in read_records(folder / run_name) if record["kind"] == "train")
    return Result(images, seconds, kills, folder / run_name)


def disturb(process, started, mean, draw):
    """Kill random workers until the process ends; return the seconds since the file `started` exists, and kills."""
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and not started.exists():
        time.sleep(0.01)
    began = time.monotonic()
    kills = 0
    due = began + draw.expovariate(1 / mean) if mean else deadline
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the run has not ended after {TIMEOUT:.0f} s")
        if time.monotonic() >= due and (workers := workers_of(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
                kills += 1
            due += draw.expovariate(1 / mean)
        time.sleep(0.02)
    return time.monotonic() - began, kills


def workers_of(root):
    """Return the process ids of the workers below the process `root`, which started them, without their loaders."""
    parents, commands = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(path.name)] = int(fields[1])
                commands[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace")
    children = [pid for pid, parent in parents.items() if parent == root]
    spawned = [pid for pid in children if "spawn_main" in commands[pid]]
    if spawned:                                  # workers of the launcher
        return spawned
    family = list(children)
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    ranks = [pid for pid in family if "mpi4py\0train.py" in commands[pid] and "mpiexec" not in commands[pid]]
    return [pid for pid in ranks if not any(parents[other] == pid for other in ranks)]       # without rank wrappers


def equal_weights(one, other):
    """Return whether the newest checkpoints of two runs hold the same arrays."""
    arrays, others = (checkpoint_format.load(checkpoint_format.latest(folder))[0] for folder in (one, other))
    return arrays.keys() == others.keys() and all(np.array_equal(arrays[key], others[key]) for key in arrays)


def rows_of(name, config, folder, options):
    """Yield the rows of a configuration."""
    probe = train(name, config, folder, options, PROBE, PROBE)
    step = probe.seconds / (PROBE - 1)
    shutil.rmtree(probe.folder)
    steps = max(PROBE, round(60 * options.minutes / step))
    snapshot = max(1, round(SNAPSHOT / step))
    usual = train(name, config, folder, options, steps, snapshot)
    rate = usual.images / usual.seconds
    yield report.row(f"{name}: undisturbed", [rate], "images/s")
    for mean in options.mean:
        found = train(name, config, folder, options, steps, snapshot, mean)
        share = 100 * found.images / found.seconds / rate
        row = report.row(f"{name}: a kill every {mean:g} s", [share], "%") | {"kills": found.kills}
        if found.kills:
            row["lost per kill, s"] = round((found.seconds - found.images / rate) / found.kills, 1)
        if config.exact:
            row["weights"] = "equal" if equal_weights(usual.folder, found.folder) else "differ"
        yield row


def rows(options):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run([sys.executable, "-m", "preprocess", "synthetic", "--train", 1024, "--validation", 64, "--batch-size", 64,
             folder / "set"], cwd=TOP)
        for name in options.runs:
            config = CONFIGURATIONS[name]
            if config.ranks and mpiexec() is None:
                yield report.not_measured(name, NEEDED)
            else:
                yield from rows_of(name, config, folder, options)


def add_options(parser):
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--mean", type=float, nargs="+", default=[60.0, 20.0])
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), metavar="NAME")


if __name__ == "__main__":
    quick = {"minutes": 0.3, "mean": [10.0], "runs": [next(iter(CONFIGURATIONS))]}
    raise SystemExit(report.main(rows, __doc__, "20 s, one kill every 10 s, replacement only", quick, add_options))
