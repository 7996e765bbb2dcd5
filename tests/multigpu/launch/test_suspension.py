"""A run that is suspended as a whole, for longer than its limits, continues; and the system time is no limit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multigpu.launch import clock
from multigpu.launch.clock import LONGEST, RunningClock, TimeLimit
from multigpu.launch.process import CONTEXT, end
from tests.mpi import Job, needs_mpi
from tests.multigpu.fakes import several_workers

LIMIT, WORK, SUSPENDED = 4.0, 0.6, 4.5           # seconds: of the parent; until the child is done; of all
TOP = Path(__file__).parents[3]


def test_clock_counts_little_of_a_gap(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    running, limit = RunningClock(), TimeLimit(3.0)
    assert (running.now(), limit.left(), limit.look()) == (0, 3.0, clock.LOOK)
    for gap in (0.5, 3600.0):
        now += gap
        assert limit.left() == 3.0 - min(gap, LONGEST) - (0.5 if gap > 1 else 0)
    assert running.now() == LONGEST
    now += 0.5
    assert limit.left() == 1.0
    now += 3600.0
    assert (limit.left(), limit.look()) == (0, 0)


# ---- processes that are suspended


def answer(pipe):
    """Entry point of a child that is done after WORK seconds in which it was not suspended."""
    pipe.send("started")
    clock.sleep(WORK)
    pipe.send("done")
    clock.sleep(WORK / 2)


def wait_for_child():
    """Print as JSON how a parent with limits has seen its child."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=answer, args=(theirs,))
    process.start()
    theirs.close()
    ours.recv()
    print("started", flush=True)
    arrived = clock.poll(ours, LIMIT)
    began = time.process_time()
    end(process, LIMIT)
    print(json.dumps([arrived, process.exitcode, time.process_time() - began]), flush=True)


@pytest.mark.slow
def test_suspended_processes_kill_nothing():
    parent = subprocess.Popen(
        [sys.executable, "-c", "from tests.multigpu.launch.test_suspension import wait_for_child; wait_for_child()"],
        cwd=TOP, stdout=subprocess.PIPE, text=True, process_group=0, env=os.environ | {"PYTHONPATH": str(TOP)},
    )
    with parent:
        assert parent.stdout.readline() == "started\n"
        for _ in range(2):                       # while it waits for the message, and for the end
            os.killpg(parent.pid, signal.SIGSTOP)
            time.sleep(SUSPENDED)
            os.killpg(parent.pid, signal.SIGCONT)
            time.sleep(WORK)
        arrived, exitcode, seconds = json.loads(parent.stdout.readline())
    assert (arrived, exitcode) == (True, 0)
    assert seconds < 0.5                         # it does not poll all the time


@pytest.mark.mpi
@needs_mpi
def test_suspended_job_continues(tmp_path):
    timeout = 3
    (tmp_path / "runs" / "run").mkdir(parents=True)
    settings = {"output": tmp_path / "runs", "run_name": "run", "n_epochs": 10**6, "warmup_epochs": 0, "rule": "bsp",
                "heartbeat_timeout": timeout}
    job = Job(tmp_path, 2, Path(several_workers.__file__), *(f"{name}={value}" for name, value in settings.items()))
    for rank in range(2):
        job.wait_for((tmp_path / "runs" / f"loader{rank}").exists)
    for _ in range(2):
        pids = [job.process.pid, *job.processes()]
        for number, seconds in ((signal.SIGSTOP, timeout + 2), (signal.SIGCONT, 1.0)):
            for pid in pids:
                os.kill(pid, number)
            time.sleep(seconds)
    os.kill(job.process.pid, signal.SIGUSR1)
    status, errors = job.finish()
    assert status == 138 and "stopped by SIGUSR1" in errors and "heartbeat_timeout" not in errors


# ---- the system time


def test_system_time_is_used_for_time_stamps_only():
    """It can be set while a run waits. A limit uses time.monotonic."""
    files = {
        path.relative_to(TOP).as_posix()
        for package in ("alexnet", "multigpu", "preprocess") for path in (TOP / package).rglob("*.py")
        if re.search(r"\btime\.time(_ns)?\b|datetime\.now|from time import", path.read_text(encoding="utf-8"))
    }
    assert files == {"alexnet/run/event_file.py"}
