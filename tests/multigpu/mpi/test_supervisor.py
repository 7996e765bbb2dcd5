"""Restarts of an MPI job by its supervisor: python -m multigpu restart mpiexec ..."""

import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from alexnet.run import checkpoint_format
from alexnet.run.recorder import read_records
from multigpu.launch.signals import Signals
from multigpu.mpi import shared_files
from multigpu.mpi.supervisor import run_job
from tests import tiny, tiny_train
from tests.mpi import Job, environment, needs_mpi
from tests.multigpu.fakes import several_workers

pytestmark = [pytest.mark.mpi, needs_mpi]

FAKES, TINY = Path(several_workers.__file__), Path(tiny_train.__file__)
RESTART = sys.executable, "-m", "multigpu", "restart"
TIMED = {"seconds", "calc", "sync", "comm", "wait", "hidden", "slowest", "at"}
GIVEN = {"model": "tiny", "batch_size": 2, "n_epochs": 9, "n_iterations": 24, "snapshot_iterations": 5, "print_freq": 1,
         "run_name": "run", "learning_rate": 0.001, "exchange_what": "weights_and_momentum"}


def given(**settings):
    return [f"{key}={value}" for key, value in settings.items()]


def start_fakes(folder, within=RESTART, variables=None, **settings):
    """Start a job of two fake workers under a supervisor."""
    settings = {"output": folder / "runs", "run_name": "run", "n_epochs": 1, "max_restarts": 2} | settings
    (folder / "runs" / "run").mkdir(parents=True, exist_ok=True)
    return Job(folder, 2, FAKES, *given(**settings), within=within, **variables or {})


def fault(folder, kind, point="computing"):
    """Return the variables of a fault of rank 1, which occurs in each start of the job."""
    return {"FAULT": f"{kind},{point},1,2", "WENT": str(folder / "went")}


def restarts(errors):
    return re.findall(r"^restart (\d) of (\d) from (.*?): (.*)$", errors, re.MULTILINE)


# ---- with a network


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """28 images: 7 steps per epoch of two ranks with batch size 2."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=28, validation=9)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Job(folder, 2, TINY, *given(data=data, output=folder / "runs", **GIVEN)).finish(180) == (0, "")
    return folder / "runs" / "run"


@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "loader", "monitor"])
def test_killed_job_equals_an_undisturbed_one(data, undisturbed, tmp_path, victim):
    job = Job(tmp_path, 2, TINY, *given(data=data, output=tmp_path / "runs", max_restarts=2, **GIVEN), within=RESTART)
    folder = tmp_path / "runs" / "run"
    log = folder / "log.txt"
    job.wait_for(lambda: log.exists() and "iteration 8 of 24" in log.read_text())
    ranks = sorted(pid for pid, command in job.processes("tiny_train.py").items() if "mpiexec" not in command)
    others = {"loader": "spawn_main", "monitor": "multigpu.failure.monitor"}
    pid = min(job.processes(others[victim])) if victim in others else ranks[int(victim[-1])]
    os.kill(pid, signal.SIGKILL)
    status, errors = job.finish(180)
    assert status == 0, errors
    [(number, of, place, reason)] = restarts(errors)
    expected = "the job's monitor has ended without a report" if victim == "monitor" else str(pid)
    assert (number, of) == ("1", "2") and expected in reason
    assert f"restart 1 of 2 from {place}: {reason}" in log.read_text()
    assert f"resuming from {folder}/checkpoint_" in log.read_text()
    arrays, others = tiny.final(folder), tiny.final(undisturbed)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert untimed(read_records(folder)) == untimed(read_records(undisturbed))
    assert checkpoint_format.newest(folder).name == "checkpoint_00000024.safetensors"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def untimed(records):
    return [{key: value for key, value in record.items() if key not in TIMED} for record in records]


# ---- without a network


def test_failures_after_the_last_restart_end_the_job(tmp_path):
    status, errors = start_fakes(tmp_path, variables=fault(tmp_path, "killed")).finish()
    assert status == 1
    assert [each[:3] for each in restarts(errors)] == [("1", "2", "the beginning"), ("2", "2", "the beginning")]
    last = r"failed after 2 restarts: rank 1 \(pid \d+ on \S+\) has died: .*"
    assert re.fullmatch(last, errors.strip().splitlines()[-1]), errors


@pytest.mark.parametrize(("kind", "status", "message"), [
    ("data", 2, "the data is wrong"), ("bug", 1, "ended by ZeroDivisionError: the step is wrong"),
])
def test_failure_that_would_recur_is_not_restarted(tmp_path, kind, status, message):
    ended, errors = start_fakes(tmp_path, variables=fault(tmp_path, kind)).finish()
    assert ended == status
    assert message in errors and not restarts(errors)


def test_invalid_settings_are_not_restarted(tmp_path):
    status, errors = start_fakes(tmp_path, devices="cpu,cpu,cpu").finish()
    assert status == 2
    assert errors.count("devices must name one device, or one for each of the 2 ranks") == 1


def test_restarts_without_a_supervisor_are_refused(tmp_path):
    status, errors = start_fakes(tmp_path, within=()).finish()
    assert status == 2
    assert errors == ("train.py: max_restarts=2 needs a process that starts mpiexec again: write `python -m multigpu "
                      "restart mpiexec ...`, or set max_restarts=0\n")


def training(folder):
    """Start a long job; return it once both ranks train."""
    job = start_fakes(folder, n_epochs=10**6, warmup_epochs=0)
    for rank in (0, 1):
        job.wait_for((folder / "runs" / f"loader{rank}").exists)
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_the_supervisor_stops_the_job_without_restart(tmp_path, number):
    job = training(tmp_path)
    job.process.send_signal(number)
    status, errors = job.finish()
    assert status == 128 + number
    assert errors.endswith("stopped by SIGUSR1\n") and not restarts(errors)
    assert (tmp_path / "runs" / "saved0").read_text() == (tmp_path / "runs" / "saved1").read_text()


def test_signal_to_a_rank_stops_the_job_without_restart(tmp_path):
    job = training(tmp_path)
    os.kill(int((tmp_path / "runs" / "worker1").read_text()), signal.SIGTERM)
    assert job.finish() == (143, "stopped by SIGTERM\n")


def test_killed_supervisor_ends_the_job(tmp_path):
    job = training(tmp_path)
    for pid, command in job.processes().items():             # all users can read the command line of a process
        assert not re.search(r"[0-9a-f]{32}", command), "the key of the supervisor or of the monitor"
        assert Path(f"/proc/{pid}/environ").stat().st_mode & 0o077 == 0
    job.process.kill()
    status, errors = job.finish()
    assert status == -signal.SIGKILL and not restarts(errors)
    assert (tmp_path / "runs" / "saved0").exists()


def test_supervisor_killed_in_the_start_ends_the_job(tmp_path):
    job = start_fakes(tmp_path, n_epochs=10**6, warmup_epochs=0)
    job.wait_for(lambda: job.processes("multigpu.failure.monitor"))
    job.process.kill()
    assert job.finish()[0] == -signal.SIGKILL


PROXY = ("hydra_pmi_proxy",)


@pytest.mark.parametrize("words", [("several_workers.py", "-n 2"), PROXY], ids=["mpiexec", "its proxy"])
def test_killed_mpiexec_is_restarted(tmp_path, words):
    job = training(tmp_path)
    for rank in (0, 1):
        (tmp_path / "runs" / f"loader{rank}").unlink()
    found = [pid for pid in job.processes(*words) if pid != job.process.pid]
    if words == PROXY and not found:
        pytest.skip("only the mpiexec of MPICH has a proxy")
    [victim] = found
    os.kill(victim, signal.SIGKILL)
    for rank in (0, 1):
        job.wait_for((tmp_path / "runs" / f"loader{rank}").exists)
    job.process.send_signal(signal.SIGTERM)
    status, errors = job.finish()
    assert status == 143
    assert len(restarts(errors)) == 1


def restart(*command, **variables):
    """Run the command restart; return its status and its last line on standard error."""
    command = [*RESTART, *command]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_command_that_cannot_start_a_job_is_refused(tmp_path):
    assert restart(str(tmp_path / "mpiexec")) == (
        2, f"python -m multigpu restart: {tmp_path}/mpiexec cannot be started: No such file or directory"
    )
    assert restart("mpiexec", PMI_SIZE="2")[1].endswith("write `python -m multigpu restart mpiexec ...`")


def test_mpiexec_that_is_killed_in_the_start_is_reported():
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert restart(sys.executable, "-c", killed) == (
        137, "mpiexec was killed by SIGKILL before the job has read its settings; it is not restarted"
    )


def test_shared_memory_of_a_rank_that_is_killed_in_mpi_init_is_removed():
    path = Path(f"/dev/shm/mpich_shm_{os.getpid():x}_test")
    try:
        done = subprocess.run([*RESTART, "touch", path], env=environment(), timeout=60)
        assert done.returncode == 0 and not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_only_new_shared_memory_without_a_user_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_files, "PAUSE", 0)
    names = "mpich_shm_a", "mpich_shm_b", "mpich_shm_c", "ucx_shm_posix_1a", "d"
    before, used, *left, other = (tmp_path / f"{name}_0" for name in names)
    for path in (before, used, *left, other):
        path.write_bytes(b"1")
    with used.open("rb") as file, mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ):
        shared_files.remove_left_files({before})
    assert set(tmp_path.iterdir()) == {before, used, other}


def test_command_without_a_job_keeps_its_status():
    began = time.monotonic()
    done = subprocess.run([*RESTART, sys.executable, "-c", "raise SystemExit(7)"], env=environment(), timeout=60)
    assert done.returncode == 7 and time.monotonic() - began < 30


@pytest.mark.parametrize("first", [True, False])
def test_job_that_is_killed_while_it_starts_is_restarted_only_if_it_has_run_before(tmp_path, data, first):
    """At the first start the settings, and so max_restarts, are not known."""
    settings = None if first else tiny.settings(data, tmp_path, max_restarts=2)
    killed = mock.Mock(poll=lambda: -signal.SIGKILL, returncode=-signal.SIGKILL)
    with mock.patch("subprocess.Popen", return_value=killed), Signals() as signals:
        result = run_job(["mpiexec"], settings, signals)
    assert result.status == 128 + signal.SIGKILL
    assert result.end.curable is not first
