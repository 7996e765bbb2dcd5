"""Kills of a process that saves checkpoints without a pause: the newest one loads, and the next save removes the rest.

python -m experiments.endurance.saves FOLDER ITERATION

is the process that is killed. It saves the iterations after ITERATION and prints each one that is complete.
"""

import os
import pathlib
import random
import re
import subprocess
import sys
import time

import numpy as np

from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import BEST, CheckpointError
from experiments.endurance.processes import ROOT

SERIES, COUNT = ("",), 1000
KEEP = 2                                         # keep_snapshots
SHAPES = {"conv.W": (64, 3, 11, 11), "dense.W": (1000, 1000), "dense.b": (1000,)}
SAVES = 4.0                                      # the moment of a kill is drawn within this many saves
PARTIAL = ".*.partial"


def save(folder, iteration):
    """Save the checkpoint of an iteration as a run does. Three of four have the lowest validation error so far."""
    path = checkpoint_format.snapshot_path(folder, iteration)
    error = 1 / iteration if iteration % 4 else 1.0
    arrays = {name: np.full(shape, iteration, np.float32) for name, shape in SHAPES.items()}
    checkpoint_format.save(path, arrays, {"position": {"iteration": iteration}, "validation_error": error})
    checkpoint_format.keep_best(path, error)
    checkpoint_format.prune(folder, KEEP, path)


def prepare(series, folder):
    """Return (the folder of the checkpoints, seconds of a save)."""
    run = folder / "run"
    run.mkdir()
    for iteration in range(1, 11):
        save(run, iteration)
    began = time.perf_counter()
    for iteration in range(11, 31):
        save(run, iteration)
    return run, (time.perf_counter() - began) / 20


def trial(shared, number):
    """Kill a process that saves; check the folder, before and after the next save."""
    run, seconds = shared
    began = time.perf_counter()
    before = checkpoint_format.iteration_of(checkpoint_format.newest(run))
    command = [sys.executable, "-m", __name__, run, before]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()                # it has imported everything
        time.sleep(random.Random(f"saves {number}").uniform(0, SAVES * seconds))
        process.kill()
        complete = [int(line) for line in process.stdout.read().split(b"\n")[:-1]]
    partial = sorted(path.name for path in run.glob(PARTIAL))
    wrong = faults(run, (complete or [before])[-1], len(partial))
    newest = checkpoint_format.iteration_of(checkpoint_format.newest(run))
    save(run, newest + 1)
    wrong += [f"{path.name} is left after the next save" for path in run.glob(PARTIAL)]
    if len(checkpoint_format.snapshots(run)) != KEEP:
        wrong.append(f"{len(checkpoint_format.snapshots(run))} checkpoints after the next save")
    outcome = re.sub(r"^\.|_\d+|\.safetensors", "", partial[0]) if partial else "nothing partial"
    return {"kind": "killed", "outcome": outcome, "seconds": time.perf_counter() - began, "wrong": wrong}


def faults(run, complete, partial):
    """Return sentences about the folder after a kill.

    Args:
        complete: the last iteration whose save is known to be complete.
        partial: number of partial folders.
    """
    wrong = [f"{partial} partial folders"] if partial > 1 else []
    found = checkpoint_format.snapshots(run)
    if not KEEP <= len(found) <= KEEP + 1:
        wrong.append(f"{len(found)} checkpoints")
    if checkpoint_format.iteration_of(found[0]) < complete:
        wrong.append(f"the newest checkpoint is {found[0].name}, but iteration {complete} was saved")
    for path in [*found, run / BEST]:
        try:
            arrays, metadata = checkpoint_format.load(path)
        except CheckpointError as error:
            wrong.append(str(error))
            continue
        iteration = metadata["position"]["iteration"]
        named = checkpoint_format.iteration_of(path) or iteration
        if named != iteration or any((array != iteration).any() for array in arrays.values()):
            wrong.append(f"{path.name} has the values of another iteration")
    return wrong


def main(folder, iteration):
    """Save checkpoints until killed; write a line when ready, and after each save."""
    os.write(1, b"ready\n")
    while True:
        iteration += 1
        save(folder, iteration)
        os.write(1, b"%d\n" % iteration)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
