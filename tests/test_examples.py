"""The examples run as their docstrings describe."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples" / "two_workers_mlp.py"


def run(*arguments, **environment):
    """Run the example in another folder; return (exit status, standard output, standard error)."""
    program = subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, timeout=60, cwd="/",
                             env=os.environ | environment)
    return program.returncode, program.stdout, program.stderr


@pytest.fixture(scope="module")
def on_the_host():
    """The output of the example without a device argument."""
    status, printed, complaints = run()
    assert (status, complaints) == (0, "")
    return printed


def test_two_workers_train_and_end_identical(on_the_host):
    costs = [float(cost) for cost in re.findall(r"^step \d+: cost (\d\.\d+)$", on_the_host, re.MULTILINE)]
    assert len(costs) == 5
    assert 0.5 > costs[0] > 1.5 * costs[-1]
    both = {f"worker {rank}: weights and momentum are identical in both" for rank in (0, 1)}
    assert both <= set(on_the_host.splitlines())


@pytest.mark.parametrize("devices", ["cuda0,cuda1", "cuda0,cuda0"])
def test_gpu_workers_print_the_same_as_host_workers(cuda_emulator, on_the_host, devices):
    status, printed, complaints = run(devices, **cuda_emulator.environment(devices=2))
    assert (status, complaints) == (0, "")
    assert sorted(printed.splitlines()) == sorted(on_the_host.splitlines())


@pytest.mark.parametrize("devices, sentence", [
    ("cpu", "two devices are needed, as in cpu,cpu or cuda0,cuda1, got cpu"),
    ("cpu,gpu1", "worker 1: a device is called cpu, or cuda and a number as in cuda0, got 'gpu1'"),
])
def test_unknown_device_is_refused_in_one_sentence(devices, sentence):
    status, printed, complaints = run(devices)
    assert (status, printed) == (1, "")
    assert sentence in complaints.splitlines()
    assert "Traceback" not in complaints


def test_example_fits_on_a_page():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80


def test_training_in_process_lowers_the_cost():
    example = EXAMPLE.with_name("train_in_process.py")
    command = [sys.executable, "-X", "importtime", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, errors) == (0, [])
    ours = {line.split()[-1] for line in done.stderr.splitlines() if re.search(r"\| +(alexnet|multigpu)\b", line)}
    assert len(ours) <= 50                       # modules that a reader of one training step may have to open
    costs = [float(cost) for cost in re.findall(r"cost (\d+\.\d+)", done.stdout)]
    assert len(costs) == 19 and costs[-1] < 0.5 * costs[0]
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40


def last_line(name):
    command = [sys.executable, EXAMPLE.with_name(name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("name", "pattern", "limit"), [
    ("cnn.py", r"error on new images: ([\d.]+)%", 5),
    ("lenet.py", r"epoch 3, test error ([\d.]+)%", 10),
    ("bayesian_filter.py", r"noise: 0\.\d+, largest error ([\d.]+)", 0.3),
])
def test_library_examples_reach_their_result(name, pattern, limit):
    if "bayesian" in name:
        pytest.importorskip("pymc", reason="needs pymc, which is not installed")
    assert float(re.fullmatch(pattern, last_line(name))[1]) < limit
