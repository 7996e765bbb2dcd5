"""Training survives what happens around it: a closed terminal, a stalled or dead loader, unreadable data, a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet.run import checkpoint_format
from tests import tiny

pytestmark = pytest.mark.slow

TOP = Path(__file__).parent.parent
SETTINGS = "model=tiny", "batch_size=2", "print_freq=1", "run_name=run", "validation=false", "n_epochs=100"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=24, validation=4, per_file=4)


def command_of(data, output, *settings):
    module = [sys.executable, "-m", "tests.tiny_train"]
    return [*module, f"data={data}", f"output={output}", *SETTINGS, *map(str, settings)]


def start(data, output, *settings, **given):
    """Start train.py with the tiny network; its outputs are pipes unless `given` differently."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command_of(data, output, *settings), cwd=TOP, text=True, encoding="utf-8", start_new_session=True, **pipes | given
    )


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


def test_hangup_saves_and_ends(data, tmp_path):
    with start(data, tmp_path) as process:
        wait_for_step(process, 2)
        process.stdout.close()
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(120) == 128 + signal.SIGHUP
    assert saved_iteration(tmp_path) >= 2
