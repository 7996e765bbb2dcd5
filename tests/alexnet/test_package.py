"""Importing the package sets floatX=float32 and does not import PyTensor or NumPy."""

import os
import subprocess
import sys

import pytest


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("imports", ["import alexnet, pytensor", "import pytensor, alexnet"])
def test_floatx_is_float32_in_either_import_order(imports):
    program = f"{imports}\nprint(pytensor.config.floatX, pytensor.tensor.matrix().dtype)"
    assert run(program, PYTENSOR_FLAGS="floatX=float64") == ["float32", "float32"]


def test_flags_of_the_user_are_kept():
    program = "import alexnet, pytensor\nprint(pytensor.config.optimizer_verbose, pytensor.config.floatX)"
    assert run(program, PYTENSOR_FLAGS="optimizer_verbose=True") == ["True", "float32"]


def test_importing_the_package_imports_no_pytensor():
    program = "import sys, alexnet\nprint('pytensor' in sys.modules, 'numpy' in sys.modules)"
    assert run(program) == ["False", "False"]


def test_failing_graph_rewrite_is_an_error_in_child_processes():
    assert run("import alexnet, pytensor\nprint(pytensor.config.on_opt_error)") == ["raise"]
