"""docs/extending.md: its examples, stored outside the package, are found by their settings and train."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.slow

TOP = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.DOTALL)
EXAMPLES = dict(BLOCK.findall((TOP / "docs" / "extending.md").read_text(encoding="utf-8")))
MODEL = "model=small_net:SmallNet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the examples as modules, and a small data set."""
    folder = tmp_path_factory.mktemp("extending")
    for name, code in EXAMPLES.items():
        (folder / name).write_text(code, encoding="utf-8")
    tiny.make_data(folder / "data", train=32, validation=8)
    return folder


def run(folder, *arguments):
    """Run a program of the project in the folder; return (status, output, errors)."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(TOP)])}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def trained(folder, name, *settings):
    """Train for two epochs of four batches; return the training log."""
    given = "data=data", f"run_name={name}", "batch_size=4", "n_epochs=2", "learning_rate=0.001", *settings
    status, _, errors = run(folder, TOP / "train.py", *given)
    assert (status, errors) == (0, "")
    return (folder / "runs" / name / "log.txt").read_text()


def test_examples_are_complete_and_short():
    assert EXAMPLES.keys() == {
        "small_net.py", "clip_op.py", "sign_sgd.py", "by_first.py", "local_sgd.py",
    }
    for name, code in EXAMPLES.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= 40, name


@pytest.mark.parametrize("backend", ["cpu", "numpy", "jax"])
def test_model_layer_and_op_train(folder, backend):
    if backend == "jax":
        pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")
    assert "finished 2 epochs" in trained(folder, f"model_{backend}", MODEL, f"backend={backend}", "n_iterations=16")


def test_model_is_summarised(folder):
    status, printed, errors = run(folder, "-m", "alexnet", "summary", "--model", "small_net:SmallNet", "--classes", 3)
    assert (status, errors) == (0, "")
    assert "clip1" in printed


def test_update_rule_trains(folder):
    settings = MODEL, "update=sign_sgd:sign_sgd", "sign_sgd_threshold=1e-6", "momentum=0.5"
    assert "finished 2 epochs" in trained(folder, "update", *settings)
    assert "sign_sgd_threshold: 1.0e-06" in (folder / "runs" / "update" / "config.yaml").read_text()


def test_strategy_trains(folder):
    settings = MODEL, "devices=cpu,cpu", "exchange=by_first:ByFirst"
    assert "finished 2 epochs" in trained(folder, "strategy", *settings)


def test_rule_trains(folder):
    settings = MODEL, "devices=cpu,cpu", "rule=local_sgd:LocalSgd", "local_steps=3"
    assert "finished 2 epochs" in trained(folder, "rule", *settings)


def test_setting_of_extension_is_checked(folder):
    arguments = "data=data", MODEL, "rule=local_sgd:LocalSgd", "local_steps=0"
    status, _, errors = run(folder, TOP / "train.py", *arguments)
    assert (status, errors) == (2, "train.py: local_steps must be greater than 0, got 0\n")
