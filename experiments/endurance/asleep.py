"""Suspension of all processes of a run for longer than its time limits, as by a suspended machine: it continues.

The time limit is heartbeat_timeout of an MPI job. A run without MPI has none, apart from the 30 s after which a loader
that does not read is reported. The processes are stopped and continued in a drawn order.
"""

import os
import random
import shutil
import signal
import time
from contextlib import suppress

from alexnet.run import checkpoint_format
from experiments.endurance.inputs import make_data
from experiments.endurance.processes import Program, mpi_command, train_command

RULES = {"bsp over MPI": "bsp", "asgd over MPI": "asgd", "gosgd over MPI": "gosgd"}
SERIES, COUNT = ("one worker", "two workers", *RULES), 10
TIMEOUT = 3                                      # heartbeat_timeout, in seconds
ASLEEP = 3 * TIMEOUT                             # seconds
STEPS = 150
LIMIT = 120.0                                    # seconds


def command(series, data, folder):
    settings = {
        "data": data, "output": folder / "runs", "run_name": "run", "model": "experiments.endurance.network:Small",
        "batch_size": 2, "n_epochs": 10**6, "n_iterations": STEPS, "learning_rate": 0.0005, "threads": 1,
        "print_freq": 1, "diagnosis": "false", "snapshot_iterations": 50,
    }
    if series in RULES:
        return mpi_command(3, **settings, rule=RULES[series], heartbeat_timeout=TIMEOUT)
    return train_command(**settings, devices="cpu" if series == "one worker" else "cpu,cpu")


def prepare(series, folder):
    """Return (the series, the data set, the folder of the trials)."""
    return series, make_data(folder / "data", 120, 8), folder


def trial(shared, number):
    """Suspend a run in its training, and check that it finishes."""
    series, data, folder = shared
    draw = random.Random(f"asleep {series} {number}")
    place = folder / f"trial{number}"
    run = place / "runs" / "run"
    records = run / "records.jsonl"
    with Program(command(series, data, place), place) as program:
        program.wait_for(lambda: records.exists() and records.read_bytes().count(b"\n") >= 5, LIMIT)
        time.sleep(draw.uniform(0, 0.5))
        running = program.process.poll() is None
        processes = program.processes()
        for number_of_signal, pause in ((signal.SIGSTOP, ASLEEP), (signal.SIGCONT, 0)):
            draw.shuffle(processes)
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number_of_signal)
            time.sleep(pause)
        status = program.end(LIMIT)
        seconds = time.monotonic() - program.began
        said = program.said()
        wrong = [] if status == 0 and not said else [f"status {status}: {said}"]
        wrong += program.left()
    newest = checkpoint_format.newest(run)
    if newest is None or checkpoint_format.iteration_of(newest) < STEPS:
        wrong.append(f"the newest checkpoint is {newest and newest.name}")
    if not wrong:
        shutil.rmtree(place)
    return {"kind": "suspended", "outcome": "" if running else "had ended", "seconds": seconds, "wrong": wrong}
