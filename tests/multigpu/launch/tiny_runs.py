"""Runs of the tiny network by the launcher, whose processes a test kills; comparison with an undisturbed run."""

import contextlib
import csv
import os
import signal
import time
from pathlib import Path

import numpy as np

from alexnet.run.recorder import read_records
from tests import tiny, tiny_train
from tests.multigpu.runs import Run, family, is_running, state_of

TINY = Path(tiny_train.__file__)
TIMED = {"seconds", "calc", "sync", "comm", "wait", "hidden", "slowest", "at"}
GIVEN = {
    "model": "tiny", "devices": "cpu,cpu", "batch_size": 2, "n_epochs": 9, "n_iterations": 24, "snapshot_iterations": 5,
    "print_freq": 1, "keep_snapshots": 2, "run_name": "run", "learning_rate": 0.001,
}


def tiny_run(folder, data, **settings):
    """Return the Run of train.py with the tiny network, in folder/runs/run; it has not been started."""
    given = GIVEN | {"data": data, "output": folder / "runs"} | settings
    return Run(folder, [f"{key}={value}" for key, value in given.items()], TINY)


def undisturbed_run(folder, data, **settings):
    """Run without failures; return the folder of the run, and its seconds."""
    run = tiny_run(folder, data, **settings)
    began = time.monotonic()
    assert run.start().finish(120) == (0, "")
    return folder / "runs" / "run", time.monotonic() - began


def members(run):
    """Return {name: pid} of the running workers and loaders of a launcher."""
    parents = {}
    for child in family(run.launcher.pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child.pid}/cmdline").read_bytes() and (state := state_of(child.pid)):
                parents[child.pid] = state[1]
    workers = sorted(pid for pid, parent in parents.items() if parent == run.launcher.pid)
    loaders = {f"loader {workers.index(parent)}": pid for pid, parent in parents.items() if parent in workers}
    return {f"worker {rank}": pid for rank, pid in enumerate(workers)} | loaders


def kill(run, victim):
    """Send SIGKILL to a process of the run as soon as it exists; return its pid, or None if the run has ended."""
    while run.launcher.poll() is None:
        if pid := members(run).get(victim):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return pid
    return None


def wait_for_log(run, text):
    log = run.folder / "runs" / "run" / "log.txt"
    end = time.monotonic() + 60
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < end and run.launcher.poll() is None, run.error.read_text()
        time.sleep(0.005)


def assert_equal_runs(folder, other):
    """Check that the final weights, the records and the tables of two runs are equal, apart from measured times."""
    arrays, others = tiny.final(folder), tiny.final(other)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert untimed(read_records(folder)) == untimed(read_records(other))
    for kind in ("train", "validation"):
        texts = [(run / f"{kind}.csv").read_text(encoding="utf-8") for run in (folder, other)]
        assert untimed(csv.DictReader(texts[0].splitlines())) == untimed(csv.DictReader(texts[1].splitlines()))


def untimed(records):
    return [{key: value for key, value in record.items() if key not in TIMED} for record in records]


def assert_clean(run, before):
    """Check that no process remains, and that the folder of runs has only the one run."""
    end = time.monotonic() + 5
    while (left := [child for child in before if is_running(child)]) and time.monotonic() < end:
        time.sleep(0.01)
    assert left == []
    assert [path.name for path in (run.folder / "runs").iterdir()] == ["run"]
