"""An MPI job of train.py: what it refuses, how it stops, what each rank receives, and how a run resumes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet.run import checkpoint_format
from alexnet.run.folder import lock
from alexnet.run.recorder import read_records
from multigpu.launch.signals import stop_notice
from tests import tiny, tiny_train
from tests.mpi import Job, needs_mpi
from tests.multigpu.fakes import several_workers

pytestmark = [pytest.mark.mpi, needs_mpi]

FAKES, TINY = Path(several_workers.__file__), Path(tiny_train.__file__)
PLAIN = ()                                       # python train.py, without -m mpi4py


def given(**settings):
    return [f"{key}={value}" for key, value in settings.items()]


def start_fakes(folder, ranks=2, under=("-m", "mpi4py"), **settings):
    settings = {"output": folder / "runs", "run_name": "run", "n_epochs": 1} | settings
    (folder / "runs" / "run").mkdir(parents=True, exist_ok=True)
    return Job(folder, ranks, FAKES, *given(**settings), under=under)


@pytest.mark.parametrize(("size", "under"), [(2, ("-m", "mpi4py")), (2, PLAIN), (1, ("-m", "mpi4py"))])
def test_normal_end_has_status_0_and_no_output(tmp_path, size, under):
    assert start_fakes(tmp_path, size, under).finish() == (0, "")
    assert sorted(path.name for path in (tmp_path / "runs").glob("saved*")) == [f"saved{rank}" for rank in range(size)]


MODEL = """
import pathlib, pytensor
from tests.tiny import Tiny
pathlib.Path(__file__).with_name("flags").write_text(f"{pytensor.config.floatX},{pytensor.config.cxx}")
"""


def test_flags_of_pytensor_are_set_before_a_model_imports_it(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTENSOR_FLAGS")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "model_of_user.py").write_text(MODEL)
    settings = given(model="model_of_user:Tiny", data=tmp_path / "none", output=tmp_path)
    status, errors = Job(tmp_path, 1, TINY.parents[1] / "train.py", *settings).finish()
    assert status == 2 and "none is not a folder" in errors, errors
    assert (tmp_path / "flags").read_text() == "float32,"


def test_fakes_do_not_import_pytensor():
    """Nor does a job before its settings have been read."""
    program = "import sys, multigpu.mpi.placement, multigpu.rules, tests.multigpu.fakes.elastic_training as _\n" \
              "print('pytensor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(("under", "settings", "message"), [
    (PLAIN, {"rank": 0, "size": 2, "device": "cpu"}, "rank=0 size=2 device=cpu start a worker by hand; in an MPI job "
     "the ranks are MPI's, and devices=... names one device for each rank of a machine"),
    (("-m", "mpi4py"), {"devices": "cpu,cpu,cpu"},
     r"devices must name one device, or one for each of the 2 ranks on \S+, got cpu,cpu,cpu"),
])
def test_invalid_settings_print_one_message(tmp_path, under, settings, message):
    status, errors = start_fakes(tmp_path, 2, under, **settings).finish()
    assert status == 2
    assert re.fullmatch(f"train.py: {message}\n", errors), errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_one_rank_stops_all_after_same_step(tmp_path, number):
    job = start_fakes(tmp_path, n_epochs=10**6, warmup_epochs=0)
    for other in (0, 1):
        job.wait_for((tmp_path / "runs" / f"loader{other}").exists)
    rank = int((tmp_path / "runs" / "worker1").read_text())
    os.kill(rank, number)
    status, errors = job.finish()
    assert (status, errors) == (128 + number, f"stopped by {number.name}\n")
    assert (tmp_path / "runs" / "saved0").read_text() == (tmp_path / "runs" / "saved1").read_text()


def test_signal_to_mpiexec_stops_job(tmp_path):
    job = start_fakes(tmp_path, n_epochs=10**6, warmup_epochs=0)
    for other in (0, 1):
        job.wait_for((tmp_path / "runs" / f"loader{other}").exists)
    os.kill(job.process.pid, signal.SIGUSR1)     # the signal that both implementations of mpiexec forward
    status, errors = job.finish()
    assert (status, errors) == (138, f"{stop_notice(signal.SIGUSR1)}\nstopped by SIGUSR1\n")
    assert (tmp_path / "runs" / "saved0").exists()


# ---- with a network


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """28 images: with batch size 2, 7 steps per epoch on 2 ranks and 4 on 3 ranks."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=28, validation=9)


def train(folder, data, size, **settings):
    """Start a job that trains the tiny network."""
    folder.mkdir(exist_ok=True)
    common = {"data": data, "output": folder / "runs", "model": "tiny", "batch_size": 2, "n_epochs": 9, "print_freq": 1,
              "keep_snapshots": "null"}
    return Job(folder, size, TINY, *given(**common | settings))


def arrays(folder, at):
    return checkpoint_format.load(checkpoint_format.snapshot_path(folder, at))[0]


def log_of(folder):
    log = folder / "log.txt"
    return log.read_text() if log.exists() else ""


def kill_a_rank(job, folder):
    """Send SIGKILL to one rank; assert that the job fails and reports it, also in the log of its run folder."""
    pid = max(job.processes("tiny_train.py", "mpi4py", "data="))
    os.kill(pid, signal.SIGKILL)
    status, errors = job.finish()
    assert status != 0
    message = rf"rank \d \(pid {pid} on \S+\) has died: .*"
    assert re.search(rf"^{message}$", errors, re.MULTILINE), errors
    assert re.search(rf"\d {message}\n\Z", log_of(folder))


def test_killed_run_resumes_bit_exactly(data, tmp_path):
    straight = tmp_path / "straight" / "runs" / "run"
    common = {"n_iterations": 9, "snapshot_iterations": 6}
    assert train(tmp_path / "straight", data, 2, run_name="run", **common).finish() == (0, "")

    job = train(tmp_path, data, 2, run_name="run", snapshot_iterations=6, n_iterations=10**6, n_epochs=10**6)
    folder = tmp_path / "runs" / "run"
    job.wait_for(lambda: "iteration 7 " in log_of(folder))
    kill_a_rank(job, folder)
    for path in checkpoint_format.snapshots(folder):                # as if killed after the first of them
        if path != checkpoint_format.snapshot_path(folder, 6):
            path.unlink()

    resumed = {"resume_train": folder, "n_epochs": 9} | common
    holder = lock(folder)
    status, errors = train(tmp_path, data, 2, **resumed).finish()
    os.close(holder)
    assert status == 2 and f"process {os.getpid()} on " in errors and f" is writing into {folder}" in errors
    assert train(tmp_path, data, 2, **resumed).finish() == (0, "")
    mine, theirs = arrays(folder, 9), arrays(straight, 9)
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)

    other = shutil.copytree(straight, tmp_path / "other")
    border = checkpoint_format.snapshot_path(other, 7)
    assert train(tmp_path, data, 3, resume_train=border, n_epochs=9, n_iterations=9).finish() == (0, "")
    assert checkpoint_format.load(checkpoint_format.snapshot_path(other, 9))[1]["workers"] == 3


@pytest.mark.compatibility
@pytest.mark.parametrize(
    "rule", [{"rule": "easgd", "easgd_tau": 1}, {"rule": "gosgd", "gosgd_p": 1}], ids=["easgd", "gosgd"]
)
def test_killed_run_resumes_from_center_or_consensus(data, tmp_path, rule):
    """With a learning rate near 0 and no momentum, the new run keeps the weights that all workers start with.

    If a worker did not start from the center variable or the consensus, its first exchange would change them.
    """
    common = rule | {"validation": "false", "para_load": "false", "snapshot_freq": 10**6, "n_epochs": 10**6}
    folder = tmp_path / "runs" / "run"
    job = train(tmp_path, data, 2, run_name="run", snapshot_iterations=5, **common)
    job.wait_for(lambda: "iteration 7 " in log_of(folder))
    kill_a_rank(job, folder)
    path, before, metadata = checkpoint_format.load_latest(folder)
    at = metadata["position"]["iteration"]
    assert path == checkpoint_format.snapshots(folder)[0] == checkpoint_format.snapshot_path(folder, at) and at % 5 == 0

    end, still = at + 4, {"learning_rate": 1e-30, "momentum": 0}
    assert train(tmp_path, data, 2, resume_train=folder, n_iterations=end, **common | still).finish() == (0, "")
    assert f"resuming from {path}, after {at} iterations" in log_of(folder)
    steps = [record["iteration"] for record in read_records(folder) if record["kind"] == "train"]
    assert steps == list(range(1, end + 1))                  # of the only worker, or of rank 0
    after, metadata = checkpoint_format.load(checkpoint_format.snapshot_path(folder, end))
    assert (metadata["position"]["iteration"], after["step"]) == (end, end)
    for name in before.keys() - {"step"}:
        if not name.endswith(".velocity"):
            np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-20, err_msg=name)
