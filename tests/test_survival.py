"""Training survives what happens around it: a closed terminal, a stalled or dead loader, bad data, a full disk."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.run.recorder import RunRecorder, read_records
from multigpu.launch.launcher import STOP_TIMEOUT
from tests import tiny

pytestmark = pytest.mark.slow

TOP = Path(__file__).parent.parent
SETTINGS = "model=tiny", "batch_size=2", "print_freq=1", "run_name=run", "n_epochs=100"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=24, validation=4, per_file=4)


def command_of(data, output, *settings):
    module = [sys.executable, "-m", "tests.tiny_train"]
    given = settings if any("validation=" in str(each) for each in settings) else ("validation=false", *settings)
    return [*module, f"data={data}", f"output={output}", *SETTINGS, *given]


def start(data, output, *settings, **given):
    """Start train.py with the tiny network; its outputs are pipes unless `given` differently."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    given = {"cwd": TOP, "text": True, "encoding": "utf-8", "start_new_session": True} | pipes | given
    return subprocess.Popen(command_of(data, output, *settings), **given)


def wait_for_step(process, step):
    """Read the standard output up to the line of a step."""
    for line in process.stdout:
        if line.startswith(f"iteration {step} "):
            return
    raise AssertionError(process.stderr.read())


def saved_iteration(output):
    _, metadata = checkpoint_format.load(checkpoint_format.latest(output / "run"))
    return metadata["position"]["iteration"]


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_closed_output_does_not_end_training(devices, data, tmp_path):
    with start(data, tmp_path, "n_iterations=8", f"devices={devices}") as process:
        wait_for_step(process, 1)
        process.stdout.close()
        process.stderr.close()
        assert process.wait(120) == 0
    assert saved_iteration(tmp_path) == 8
    assert "iteration 8 of 8" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_hangup_saves_and_ends(data, tmp_path, default_sighup):
    with start(data, tmp_path) as process:
        wait_for_step(process, 2)
        process.stdout.close()
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(120) == 128 + signal.SIGHUP
    assert saved_iteration(tmp_path) >= 2


def children(process):
    """Return (process id of a worker, process id of its loader) of each worker of a launcher."""
    pids = {int(name): Path(f"/proc/{name}/stat") for name in os.listdir("/proc") if name.isdigit()}
    parents = {}
    for pid, path in pids.items():
        with contextlib.suppress(OSError):
            parents[pid] = int(path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    workers = [pid for pid, parent in parents.items() if parent == process.pid and "spawn_main" in command(pid)]
    return [(worker, pid) for worker in sorted(workers) for pid, parent in parents.items() if parent == worker]


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")


def end_of(process):
    """Return the exit status and the last line of standard error."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors.strip().splitlines()[-1]


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_dead_loader_loses_no_step(devices, data, tmp_path):
    with start(data, tmp_path, f"devices={devices}") as process:
        wait_for_step(process, 3)
        _, loader = children(process)[-1]
        os.kill(loader, signal.SIGKILL)
        status, message = end_of(process)
    assert status == 1
    iteration = saved_iteration(tmp_path)
    assert iteration >= 3 and iteration == last_record(tmp_path)
    path = checkpoint_format.snapshot_path(tmp_path / "run", iteration)
    assert f"the loader (pid {loader}) was killed by SIGKILL; the last good checkpoint is {path}" in message


def last_record(output):
    return [record["iteration"] for record in read_records(output / "run") if record["kind"] == "train"][-1]


@pytest.mark.parametrize("devices, validation", [("cpu", "false"), ("cpu,cpu", "false"), ("cpu,cpu", "true")])
def test_removed_data_loses_no_step(devices, validation, data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    with start(copy, tmp_path, f"devices={devices}", f"validation={validation}", "snapshot_freq=99") as process:
        wait_for_step(process, 3)
        shutil.rmtree(copy / ("val_hkl_b4_b_4" if validation == "true" else "train_hkl_b4_b_4"))
        status, message = end_of(process)
    assert status == 2
    assert saved_iteration(tmp_path) == last_record(tmp_path) >= 3
    assert ".hkl is missing" in message and "the last good checkpoint is" in message


def test_all_workers_without_data_wait_for_the_checkpoint(data, tmp_path):
    """Saving takes longer than the launcher waits for the others after the first worker has reported its error."""
    copy = shutil.copytree(data, tmp_path / "data")
    environment = os.environ | {"SLOW_SAVE": str(2 * STOP_TIMEOUT)}
    with start(copy, tmp_path, "devices=cpu,cpu", "snapshot_freq=99", env=environment) as process:
        wait_for_step(process, 3)
        shutil.rmtree(copy / "train_hkl_b4_b_4")
        status, message = end_of(process)
    assert status == 2
    assert saved_iteration(tmp_path) == last_record(tmp_path) >= 3
    assert message.endswith(f"is missing; the last good checkpoint is {checkpoint_format.latest(tmp_path / 'run')}")


def test_dead_worker_ends_with_the_name_of_the_last_checkpoint(data, tmp_path):
    with start(data, tmp_path, "devices=cpu,cpu", "snapshot_iterations=2") as process:
        wait_for_step(process, 3)
        worker, _ = children(process)[-1]
        os.kill(worker, signal.SIGKILL)
        status, message = end_of(process)
    assert status == 1
    assert message.endswith(f"killed by SIGKILL; the last checkpoint is {checkpoint_format.latest(tmp_path / 'run')}")


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_stalled_loader_is_reported_and_a_stop_obeyed(devices, data, tmp_path):
    with start(data, tmp_path, f"devices={devices}", env=os.environ | {"STALLED": "3", "PATIENCE": "1"}) as process:
        wait_for_step(process, 3)
        _, loader = children(process)[-1]
        os.kill(loader, signal.SIGSTOP)
        for line in process.stdout:
            if "warning: waiting for" in line:
                break
        process.send_signal(signal.SIGTERM)
        status, message = end_of(process)
    assert (status, message) == (143, "stopped by SIGTERM")
    assert saved_iteration(tmp_path) == last_record(tmp_path) >= 3


@pytest.mark.parametrize("attribute, iteration, rest", [
    ("text", None, "No space left on device: '.*log.txt'"),
    ("lines", 2, "records.jsonl: No space left on device; the last good checkpoint is .*_00000002.safetensors"),
])
def test_full_disk_of_the_records_loses_no_step(attribute, iteration, rest, data, tmp_path, monkeypatch):
    opened = RunRecorder._open

    def open_on_full_disk(self):
        opened(self)
        getattr(self, attribute).close()
        setattr(self, attribute, io.TextIOWrapper(io.FileIO("/dev/full", "w"), encoding="utf-8"))

    monkeypatch.setattr(RunRecorder, "_open", open_on_full_disk)
    with pytest.raises(OSError, match=rest):
        tiny.run(data, tmp_path, batch_size=2)
    assert (saved_iteration(tmp_path) if iteration else None) == iteration


def test_room_for_checkpoints_is_checked_before_compiling(data, tmp_path, monkeypatch, capsys):
    for free, refused in ((10_000, True), (1_000_000, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with pytest.raises(CheckpointError) if refused else contextlib.nullcontext() as error:
            tiny.run(data, tmp_path, batch_size=2, n_iterations=1, run_name=str(free))
        shown = capsys.readouterr().out
        assert ("compiling" in shown) is not refused
        message = str(error.value) if refused else shown
        assert f"{free / 1e6:,.1f} MB free, and a checkpoint of this network takes 0.8 MB" in message
