"""Faults in an MPI job: the job ends within seconds, fails, and reports the rank that failed first.

The faults occur at chosen points. tests.system.random_faults injects them at random moments and resumes the run.
"""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.mpi import Job, needs_mpi
from tests.multigpu.failure.messages import MESSAGES, NAME, TIMEOUT
from tests.multigpu.fakes import several_workers
from tests.system import random_faults

pytestmark = [pytest.mark.mpi, needs_mpi]

SCRIPT = Path(several_workers.__file__)
SETTINGS = {"bsp": {}, "easgd": {"easgd_tau": 1}, "gosgd": {"gosgd_p": 1}, "noloco": {"noloco_steps": 1},
            "every 2": {"rule": "bsp", "average_every": 2}}
GONE = 10                                        # seconds within which a job must end

# (rule, how a rank fails, where, which of three ranks, expected MESSAGE); rank 0 is the server of easgd
FAULTS = [
    ("bsp", "killed", "starting", 1, "died"),
    ("bsp", "killed", "loading", 1, "lost its loader"),
    ("bsp", "killed", "between Ready and Done", 1, "died"),
    ("bsp", "crashed", "after Done", 2, "died"),
    ("bsp", "left", "computing", 1, "died"),
    ("bsp", "stopped", "between Ready and Done", 2, "silent"),
    ("bsp", "hung", "loading", 1, "stalled"),
    ("bsp", "bug", "connecting", 0, "bug"),
    ("bsp", "data", "computing", 1, "data"),
    ("easgd", "killed", "serving", 0, "died"),
    ("easgd", "killed", "coming", 2, "died"),
    ("easgd", "stopped", "serving", 0, "silent"),
    ("easgd", "bug", "saving", 0, "bug"),
    ("gosgd", "killed", "pushing", 1, "died"),
    ("gosgd", "stopped", "entering", 2, "silent"),
    ("gosgd", "bug", "validating", 1, "bug"),
    ("noloco", "killed", "pushing", 1, "died"),
    ("noloco", "hung", "computing", 2, "stalled"),
    ("every 2", "killed", "loading", 1, "lost its loader and has no common state"),
]
ONCE = ("starting", "connecting", "saving")         # points that fail at the first visit


def started(folder, size=3, variables=None, **settings):
    """Start a job of the fakes with a log in its run folder."""
    (folder / "runs" / "run").mkdir(parents=True)
    given = {"output": folder / "runs", "run_name": "run", "n_epochs": 2, "heartbeat_timeout": TIMEOUT} | settings
    return Job(folder, size, SCRIPT, *(f"{key}={value}" for key, value in given.items()), **variables or {})


@pytest.mark.parametrize(("rule", "how", "where", "rank", "message"), FAULTS)
def test_fault_ends_job_and_names_rank(tmp_path, rule, how, where, rank, message):
    at = 1 if where in ONCE else 2
    variables = {"FAULT": f"{how},{where},{rank},{at}", "WENT": str(tmp_path / "went")}
    job = started(tmp_path, variables=variables, **{"rule": rule} | SETTINGS[rule])
    job.wait_for((tmp_path / "went").exists)
    began = time.monotonic()
    status, errors = job.finish(GONE + TIMEOUT)
    assert time.monotonic() - began < GONE + TIMEOUT
    assert status == {"data": 2}.get(how, status) != 0
    expected = MESSAGES[message].format(rank=rank)
    found = [line for line in errors.splitlines() if line.startswith(("rank ", "all ranks "))]
    assert len(found) == 1 and re.fullmatch(expected, found[0]), errors
    assert ("Traceback" in errors) == (how == "bug")
    if where not in ("starting", "connecting"):              # the log requires the settings
        log = (tmp_path / "runs" / "run" / "log.txt").read_text()
        assert re.fullmatch(rf"\d+-\d+-\d+ \d+:\d+:\d+ {expected}\n", log), log


def test_fault_ends_job_at_random_moment_and_run_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(random_faults, "SPAN", 0.5)           # seconds; a longer span requires a longer run
    data = tiny.make_data(tmp_path / "data", train=28, validation=9)
    (outcome,) = random_faults.outcomes(tmp_path, data, "gosgd", "raising", 1, random.Random(0))
    assert (outcome.reported, outcome.resumed, outcome.wrong) == (True, True, [])
    row = random_faults.table([outcome]).splitlines()[-1]
    assert row == f"| gosgd | raising | 1 | 1 | {outcome.seconds:.1f} s | 1 | 0 |"


def test_lost_monitor_ends_job(tmp_path):
    job = started(tmp_path, n_epochs=10**6, rule="bsp", warmup_epochs=0)
    job.wait_for((tmp_path / "runs" / "loader0").exists)
    (pid,) = job.processes("multigpu.failure.monitor")
    os.kill(pid, signal.SIGKILL)
    status, errors = job.finish(GONE)
    assert status != 0
    assert re.search(rf"^{NAME.format(rank=0)} has lost this job's monitor on \S+; the job ends$", errors, re.MULTILINE)
