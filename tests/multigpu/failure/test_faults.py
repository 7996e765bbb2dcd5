"""Faults in an MPI job: the job ends within seconds, fails, and reports the rank that failed first.

The faults occur at chosen points. tests.system.random_faults injects them at random moments and resumes the run.
"""

import random
import re
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.mpi import Job, needs_mpi
from tests.multigpu import several_doubles
from tests.system import random_faults

pytestmark = [pytest.mark.mpi, needs_mpi]

SCRIPT = Path(several_doubles.__file__)
SETTINGS = {"bsp": {}, "easgd": {"easgd_tau": 1}, "gosgd": {"gosgd_p": 1}}
TIME_OUT = 3                                     # seconds until a silent rank is reported
GONE = 10                                        # seconds within which a job must end

NAME = r"rank {rank} \(pid \d+ on [^)]+\)"
DIED = NAME + " has died: it was killed, or has crashed; mpiexec may report the signal"
LOADER = NAME + r": the loader \(pid \d+\) was killed by SIGKILL"
SILENT = NAME + rf" has been silent for {TIME_OUT} s \(heartbeat_timeout\): it hangs, was stopped, or cannot be reached"
STILL = (
    NAME + rf" has not done a step for {TIME_OUT} s, and is not waiting for another rank; "
    "if a step takes this long, increase heartbeat_timeout"
)

BUG = NAME + ": ended by ZeroDivisionError: the step is wrong"

# (rule, how a rank fails, where, which of three ranks, expected message); rank 0 is the server of easgd
FAULTS = [
    ("bsp", "killed", "starting", 1, DIED),
    ("bsp", "killed", "connecting", 2, DIED),
    ("bsp", "killed", "loading", 1, LOADER),
    ("bsp", "killed", "between Ready and Done", 1, DIED),
    ("bsp", "killed", "before the sums", 0, DIED),
    ("bsp", "crashed", "after Done", 2, DIED),
    ("bsp", "left", "computing", 1, DIED),
    ("bsp", "stopped", "between Ready and Done", 2, SILENT),
    ("bsp", "hung", "loading", 1, STILL),
    ("bsp", "bug", "connecting", 0, BUG),
    ("bsp", "data", "computing", 1, NAME + ": the data is wrong"),
    ("easgd", "killed", "serving", 0, DIED),
    ("easgd", "killed", "coming", 2, DIED),
    ("easgd", "stopped", "serving", 0, SILENT),
    ("easgd", "stopped", "coming", 1, SILENT),
    ("easgd", "bug", "saving", 0, BUG),
    ("gosgd", "killed", "pushing", 1, DIED),
    ("gosgd", "killed", "entering", 0, DIED),
    ("gosgd", "stopped", "entering", 2, SILENT),
    ("gosgd", "bug", "validating", 1, BUG),
]
ONCE = ("starting", "connecting", "saving", "before the sums")           # points that fail at the first visit


def started(folder, size=3, variables=None, **settings):
    """Start a job of the fakes with a log in its run folder."""
    (folder / "runs" / "run").mkdir(parents=True)
    given = {"output": folder / "runs", "run_name": "run", "n_epochs": 2, "heartbeat_timeout": TIME_OUT} | settings
    return Job(folder, size, SCRIPT, *(f"{key}={value}" for key, value in given.items()), **variables or {})


@pytest.mark.parametrize(("rule", "how", "where", "rank", "sentence"), FAULTS)
def test_one_rank_s_fault_ends_the_job_and_names_it(tmp_path, rule, how, where, rank, sentence):
    at = 1 if where in ONCE else 2
    variables = {"FAULT": f"{how},{where},{rank},{at}", "WENT": str(tmp_path / "went")}
    job = started(tmp_path, variables=variables, rule=rule, **SETTINGS[rule])
    job.wait_for((tmp_path / "went").exists)
    began = time.monotonic()
    status, said = job.finish(GONE + TIME_OUT)
    assert time.monotonic() - began < GONE + TIME_OUT
    assert status == {"data": 2}.get(how, status) != 0
    expected = sentence.format(rank=rank)
    found = [line for line in said.splitlines() if line.startswith(("rank ", "all ranks "))]
    assert len(found) == 1 and re.fullmatch(expected, found[0]), said
    assert ("Traceback" in said) == (how == "bug")
    if where not in ("starting", "connecting"):              # the log requires the settings
        log = (tmp_path / "runs" / "run" / "log.txt").read_text()
        assert re.fullmatch(rf"\d+-\d+-\d+ \d+:\d+:\d+ {expected}\n", log), log


def test_a_random_exception_is_reported_and_the_run_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(random_faults, "SPAN", 0.5)           # seconds; a longer span requires a longer run
    data = tiny.make_data(tmp_path / "data", train=28, validation=9)
    (outcome,) = random_faults.outcomes(tmp_path, data, "gosgd", "raising", 1, random.Random(0))
    assert (outcome.reported, outcome.resumed, outcome.wrong) == (True, True, [])
    row = random_faults.table([outcome]).splitlines()[-1]
    assert row == f"| gosgd | raising | 1 | 1 | {outcome.seconds:.1f} s | 1 | 0 |"
