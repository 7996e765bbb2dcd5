"""Importing the package changes nothing outside it, and its graphs do not depend on PyTensor's flags."""

import os
import subprocess
import sys

import numpy as np
import pytensor
import pytest
from pytensor.graph.traversal import ancestors

from alexnet.models.googlenet import GoogLeNet
from alexnet.training.network import Network
from alexnet.training.updates import UPDATE_RULES


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


CHANGED = """
import os
before = dict(os.environ)
import pytensor
flags = {name: getattr(pytensor.config, name) for name in ("floatX", "cxx", "blas__ldflags", "on_opt_error")}
import alexnet.ops, alexnet.inference.predict, alexnet.training.network, multigpu.worker
print(before == dict(os.environ), flags == {name: getattr(pytensor.config, name) for name in flags})
"""
@pytest.mark.slow
def test_importing_the_package_changes_no_flag_of_pytensor():
    assert run(CHANGED, PYTENSOR_FLAGS="floatX=float64,cxx=,blas__ldflags=-lm,on_opt_error=warn") == ["True", "True"]


@pytest.mark.parametrize("rule", ["momentum", "nesterov", "adagrad", "adadelta"])
def test_training_is_float32_if_floatx_is_float64(rule):
    with pytensor.config.change_flags(floatX="float64"):
        network = Network(GoogLeNet(None, classes=2), np.zeros((3, 256, 256)), UPDATE_RULES[rule].function, "numpy")
        graph = network.training_graph
        graphs = [*graph.outputs, *graph.gradients, *(new for _, new in network.update_graph[2])]
    assert "float64" not in {getattr(variable.type, "dtype", "") for variable in ancestors(graphs)}


def test_importing_the_package_imports_no_pytensor():
    program = "import sys, alexnet\nprint('pytensor' in sys.modules, 'numpy' in sys.modules)"
    assert run(program) == ["False", "False"]


def test_failing_graph_rewrite_is_an_error_in_child_processes():
    assert run("import alexnet, pytensor\nprint(pytensor.config.on_opt_error)") == ["raise"]
