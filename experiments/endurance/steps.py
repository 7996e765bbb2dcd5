"""One long training of two workers with loaders, validation and checkpoints, sampled every few seconds.

The files that hold a record of each step grow by design; everything else must not.
"""

import time
from collections import Counter

from experiments.endurance.inputs import make_data
from experiments.endurance.processes import SHARED, Program, sample, size_of, train_command

COUNT = 10_000                                   # steps
WORKERS, BATCH, STEPS_OF_EPOCH = 2, 4, 100
EVERY = 2.0                                      # seconds between two samples
LIMIT = 6 * 3600.0                               # seconds
GROWS = ("records",)


def series_of(steps):
    """Return the name of a run of this length."""
    return f"{steps} steps"


def prepare(series, folder):
    """Make the data set."""
    return make_data(folder / "data", WORKERS * BATCH * STEPS_OF_EPOCH, 16), folder


def trial(shared, number, steps=COUNT):
    """Train and sample."""
    data, folder = shared
    output = folder / "runs"
    run = output / "run"
    command = train_command(
        data=data, output=output, run_name="run", model="experiments.endurance.network:Small", batch_size=BATCH,
        devices=",".join(["cpu"] * WORKERS), n_epochs=10**6, n_iterations=steps, learning_rate=0.0005,
        keep_snapshots=2, threads=1, print_freq=100,
    )
    samples = []
    with Program(command, folder / "program") as program:
        while program.end(EVERY) is None and time.monotonic() - program.began < LIMIT:
            samples.append(sample_of(program, output))
        status, seconds = program.process.poll(), time.monotonic() - program.began
        wrong = ([] if status == 0 else [f"status {status}: {program.said()}"]) + program.left()
    size = size_of(path for path in run.rglob("*") if path.suffix not in (".safetensors",))
    return {"kind": "run", "outcome": f"status {status}", "seconds": seconds, "wrong": wrong, "grows": GROWS,
            "record_bytes_per_step": size / steps, "samples": samples}


def sample_of(program, output):
    """Return a sample: each process, the files in /dev/shm and TMPDIR, and the bytes of the output folder."""
    counts = Counter()
    found = {"seconds": round(time.monotonic() - program.began, 3)}
    for role, processes in sorted(program.roles().items()):
        for process in processes:
            if values := sample(process.pid):
                found[f"{role} {counts[role]}"] = values._asdict()
                counts[role] += 1
    files = [path for path in output.rglob("*") if path.is_file()]
    saved = {path for path in files if path.suffix == ".safetensors"}
    return found | {
        "processes": sum(counts.values()), "shared memory files": len(list(SHARED.iterdir())),
        "temporary files": len(list(program.temporary.rglob("*"))), "files": len(files),
        "checkpoints": size_of(saved), "records": size_of(set(files) - saved),
    }
