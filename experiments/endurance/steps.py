"""One long training of two workers with loaders, validation and checkpoints, sampled every few seconds.

The samples are those of the training: they end with the last step. The files that hold a record of each step or epoch
grow by design; everything else must not.
"""

import os
import signal
import time
from collections import Counter

from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import BEST
from experiments.endurance.inputs import make_data
from experiments.endurance.processes import Program, Sample, sample, size_of, train_command

COUNT = 30_000                                   # steps, so that the last 90 % begin after the first pictures
WORKERS, BATCH, STEPS_OF_EPOCH = 2, 4, 100
EVERY = 2.0                                      # seconds between two samples
READINGS, APART = 3, 0.01                        # of a process per sample, of which the smallest counts; seconds
LIMIT = 6 * 3600.0                               # seconds
ENDING = 120.0                                   # seconds
GROWS = ("records", "report")
REPORT = ("report.html", "report.safetensors", "*.png")


def series_of(steps):
    """Return the name of a run of this length."""
    return f"{steps} steps"


def prepare(series, folder):
    """Make the data set."""
    return make_data(folder / "data", WORKERS * BATCH * STEPS_OF_EPOCH, 16), folder


def trial(shared, number, steps=COUNT, limit=LIMIT):
    """Train and sample.

    Args:
        limit: seconds after which the training is stopped by SIGTERM.
    """
    data, folder = shared
    output = folder / "runs"
    run = output / "run"
    command = train_command(
        data=data, output=output, run_name="run", model="experiments.endurance.network:Small", batch_size=BATCH,
        devices=",".join(["cpu"] * WORKERS), n_epochs=10**6, n_iterations=steps, learning_rate=0.0005,
        keep_snapshots=2, threads=1, print_freq=100,
    )
    last = checkpoint_format.snapshot_path(run, steps)
    samples, expected = [], 0
    with Program(command, folder / "program") as program:
        while program.end(EVERY) is None and not last.exists():
            samples.append(sample_of(program, run))
            if time.monotonic() - program.began > limit:
                os.kill(program.process.pid, signal.SIGTERM)
                expected = 128 + signal.SIGTERM
                break
        status, seconds = program.end(ENDING), time.monotonic() - program.began
        wrong = ([] if status == expected else [f"status {status}: {program.said()}"]) + program.left()
    done = checkpoint_format.iteration_of(checkpoint_format.newest(run)) if checkpoint_format.newest(run) else 0
    return {"kind": "run", "outcome": f"{done} steps", "seconds": seconds, "wrong": wrong, "grows": GROWS,
            "record_bytes_per_step": samples[-1]["records"] / max(done, 1), "samples": samples}


def sample_of(program, run):
    """Return a sample: each process, the files in /dev/shm and TMPDIR, and the bytes in the run's folder."""
    counts = Counter()
    found = {"seconds": round(time.monotonic() - program.began, 3)}
    for role, processes in sorted(program.roles().items()):
        for process in processes:
            if values := smallest(process.pid):
                found[f"{role} {counts[role]}"] = values._asdict()
                counts[role] += 1
    files = {path for path in run.rglob("*") if path.is_file()}
    saved = {*checkpoint_format.snapshots(run), run / BEST}      # newer than files: a checkpoint may replace another
    report = {path for pattern in REPORT for path in run.glob(pattern)}
    return found | {
        "processes": sum(counts.values()), "shared memory files": len(program.shared_memory()),
        "temporary files": len(list(program.temporary.rglob("*"))), "files": len(files),
        "checkpoints": size_of(saved), "report": size_of(report), "records": size_of(files - saved - report),
    }


def smallest(pid):
    """Return the smallest of several readings of each quantity, because loaders open files; None if it has ended."""
    readings = []
    for _ in range(READINGS):
        readings.append(sample(pid))
        time.sleep(APART)
    return None if None in readings else Sample(*map(min, zip(*readings, strict=True)))
