"""Short runs of one and two workers with loaders: some finish, others are stopped, or lose the launcher or a worker.

The moment is drawn within the duration of a run that finishes, so it may be during the imports, the compilation, the
training or a save.
"""

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress

from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from experiments.endurance.inputs import make_data
from experiments.endurance.processes import Program, train_command

SERIES, COUNT = ("",), 1000
STEPS = 12                                       # of a run that finishes
LIMIT = 120.0                                    # seconds
NAMES = {1: "one worker", 2: "two workers"}
ENDS = {                                         # kind -> the signal, and the exit status
    "finished": (None, 0), "SIGTERM": (signal.SIGTERM, 128 + signal.SIGTERM),
    "Ctrl-C": (signal.SIGINT, 128 + signal.SIGINT), "launcher killed": (signal.SIGKILL, -signal.SIGKILL),
    "worker killed": (signal.SIGKILL, 1),
}


def settings(data, folder, workers):
    return {
        "data": data, "output": folder / "runs", "run_name": "run", "model": "experiments.endurance.network:Linear",
        "batch_size": 2, "devices": ",".join(["cpu"] * workers), "n_epochs": 10**6, "threads": 1, "print_freq": 1,
        "learning_rate": 1e-6, "snapshot_iterations": 3, "diagnosis": "false",
    }


def prepare(series, folder):
    """Return (the data set, {workers: seconds of a run that finishes}, the folder of the trials)."""
    data = make_data(folder / "data", 48, 4)
    durations = {}
    for workers in (1, 2):
        for _ in range(2):                       # the first one compiles kernels
            row = run_once(data, folder / "undisturbed", workers, "finished", 0)
            if row["wrong"]:
                raise RuntimeError(f"an undisturbed run failed: {row['wrong']}")
        durations[workers] = row["seconds"]
    return data, durations, folder


def trial(shared, number):
    """Run once; the number of workers, the end and its moment are drawn."""
    data, durations, folder = shared
    draw = random.Random(f"starts {number}")
    workers, end = draw.choice((1, 2)), draw.choice(tuple(ENDS))
    return run_once(data, folder / f"trial{number}", workers, end, draw.uniform(0, durations[workers]))


def run_once(data, folder, workers, end, moment):
    """Run a training to its end, or end it after `moment` seconds; return its row."""
    given = settings(data, folder, workers) | ({"n_iterations": STEPS} if end == "finished" else {})
    number, expected = ENDS[end]
    with Program(train_command(**given), folder) as program:
        victim = None
        if number is not None:
            victim = send(program, end, number, moment)
        status = program.end(LIMIT)
        seconds = time.monotonic() - program.began
        wrong = program.left()
        said = program.said()
    allowed = {expected}
    if number in (signal.SIGTERM, signal.SIGINT) and victim == "starting":
        allowed |= {-number}                     # before the launcher has a handler
    elif end != "launcher killed" and "Traceback" in said:         # of multiprocessing, in a worker that starts
        wrong.append(f"a traceback: {said}")
    if status not in allowed:
        wrong.append(f"status {status}: {said}")
    saved, recorded = state_of(folder / "runs" / "run", wrong)
    if end in ("finished", "SIGTERM", "Ctrl-C") and saved != recorded:
        wrong.append(f"iteration {recorded} was recorded, {saved} saved: {said}")
    if not wrong:
        shutil.rmtree(folder)
    outcome = "" if number is None else "before the first step" if not recorded else "during training"
    return {"kind": f"{NAMES[workers]}, {end}", "outcome": outcome, "moment": round(moment, 3), "seconds": seconds,
            "iteration": recorded, "wrong": wrong}


def send(program, end, number, moment):
    """Send the signal after `moment` seconds; return its receiver: launcher, worker, or none.

    starting: a launcher that has no workers yet.
    """
    if end == "worker killed":                   # a moment in the life of the workers
        program.wait_for(lambda: program.find("worker"), LIMIT)
    time.sleep(moment)
    workers = program.find("worker")
    if end == "worker killed" and not workers:
        return "none"
    with suppress(ProcessLookupError):
        if end == "worker killed":
            os.kill(random.Random(moment).choice(workers).pid, number)
            return "worker"
        if end == "Ctrl-C":
            os.killpg(program.process.pid, number)
        else:
            os.kill(program.process.pid, number)
    return "launcher" if workers else "starting"


def state_of(run, wrong):
    """Return (iteration of the newest checkpoint, last recorded iteration), 0 for none; add to `wrong` what is damaged.

    Args:
        run: the run's folder, which need not exist.
    """
    saved = recorded = 0
    newest = checkpoint_format.newest(run)
    if newest:
        saved = checkpoint_format.iteration_of(newest)
        try:
            checkpoint_format.load(newest)
        except CheckpointError as error:
            wrong.append(str(error))
    lines = (run / "records.jsonl").read_bytes() if (run / "records.jsonl").exists() else b""
    for line in lines.split(b"\n")[:-1]:
        record = json.loads(line)
        if record["kind"] == "train":
            recorded = record["iteration"]
    return saved, recorded
