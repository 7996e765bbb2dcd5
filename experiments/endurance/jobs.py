"""Kills of a random process of an MPI job that its supervisor restarts: the job ends in time, and leaves nothing.

    supervisor              killed; the ranks save and end, without a restart
    any other process       the job reaches its end, with status 0; with rule bsp and exchange_what=weights_and_momentum
                            its weights equal those of an undisturbed job
    - in the start, before rank 0 has read the settings   the job may end instead; without a supervisor the shared
      memory of a rank that dies in MPI_Init remains
    - after the last step   the status may be that of mpiexec
"""

import os
import random
import shutil
import signal
import time
from contextlib import suppress

from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from experiments.endurance.inputs import make_data
from experiments.endurance.journal import NO_PROCESS
from experiments.endurance.processes import SHARED, Program, mpi_command
from multigpu.mpi import shared_files

RULES = {
    "bsp": {"exchange_what": "weights_and_momentum"}, "slowmo": {"slowmo_steps": 3}, "easgd": {"easgd_tau": 2},
    "gosgd": {"gosgd_p": 0.5}, "noloco": {"noloco_steps": 2}, "asgd": {"n_sync": 2},
}
SERIES, COUNT = tuple(RULES), 200
EXACT = ("bsp",)                                 # rules whose restart is bit-exact, with these settings
RANKS = {"easgd": 3, "asgd": 3}                  # with the server; 2 for the other rules
STEPS, SNAPSHOT = 60, 10
OF_MPI_INIT = tuple(str(SHARED / name.rstrip("*")) for name in shared_files.NAMES)
LIMIT = 120.0                                    # seconds
COMMON = {
    "run_name": "run", "model": "experiments.endurance.network:Linear", "batch_size": 2, "n_epochs": 10**6,
    "n_iterations": STEPS, "snapshot_iterations": SNAPSHOT, "learning_rate": 0.00001, "threads": 1, "print_freq": 10,
    "max_restarts": 3, "diagnosis": "false", "heartbeat_timeout": 30,
}


def command(rule, data, folder):
    return mpi_command(RANKS.get(rule, 2), **COMMON, rule=rule, data=data, output=folder / "runs", **RULES[rule])


def prepare(rule, folder):
    """Return (the rule, the data set, seconds of an undisturbed job, its final arrays, the folder of the trials)."""
    data = make_data(folder / "data", 240, 8)
    place = folder / "undisturbed"
    with Program(command(rule, data, place), place) as program:
        status, seconds = program.end(LIMIT), time.monotonic() - program.began
        if status != 0:
            raise RuntimeError(f"an undisturbed job of rule {rule} ended with status {status}: {program.said()}")
    arrays, _ = checkpoint_format.load(checkpoint_format.newest(place / "runs" / "run"))
    return rule, data, seconds, arrays, folder


def trial(shared, number):
    """Kill a process of a job at a random moment, and check its end."""
    rule, data, duration, expected, folder = shared
    draw = random.Random(f"jobs {rule} {number}")
    place = folder / f"trial{number}"
    run = place / "runs" / "run"
    with Program(command(rule, data, place), place) as program:
        time.sleep(draw.uniform(0, duration))
        processes = [(role, each) for role, group in sorted(program.roles().items()) for each in group]
        role, victim = draw.choice(processes) if processes else (NO_PROCESS, None)
        settled = (run / "log.txt").exists()
        late = checkpoint_format.snapshot_path(run, STEPS).exists()
        if victim:
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
        moment = time.monotonic() - program.began
        status = program.end(LIMIT)
        seconds = time.monotonic() - program.began
        wrong = program.left()
        said = program.said()
    complete = status == 0
    if complete:
        outcome = "restarted" if "\nrestart 1 of " in f"\n{said}" else "continued"
    else:
        outcome = "ended after the last step" if late else "ended in the training" if settled else "ended in the start"
    expected_end = status == -signal.SIGKILL if role == "supervisor" else complete or late or not settled
    if status is None or not expected_end:
        wrong.append(f"status {status}: {said}")
    if role == "supervisor" and not settled:
        wrong = [each for each in wrong if not each.startswith(OF_MPI_INIT)]
    wrong += faults(run, complete or late, expected if rule in EXACT else None)
    if not wrong:
        shutil.rmtree(place)
    return {"kind": role, "outcome": outcome, "moment": round(moment, 3), "seconds": seconds, "settled": settled,
            "status": status, "wrong": wrong}


def faults(run, complete, expected):
    """Return sentences about the newest checkpoint of a job.

    Args:
        complete: whether the job has reached its end.
        expected: the arrays that it must then have, or None.
    """
    newest = checkpoint_format.newest(run)
    if newest is None:
        return ["there is no checkpoint"] if complete else []
    try:
        arrays, _ = checkpoint_format.load(newest)
    except CheckpointError as error:
        return [str(error)]
    if complete and checkpoint_format.iteration_of(newest) < STEPS:
        return [f"the last checkpoint is {newest.name}, after {STEPS} steps"]
    if complete and expected is not None:
        return [f"{name} differs from that of an undisturbed job" for name, array in sorted(expected.items())
                if not (array == arrays[name]).all()]
    return []
