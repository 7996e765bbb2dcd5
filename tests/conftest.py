"""Shared fixtures."""

import signal
import sys
from pathlib import Path

from tests import environment  # sets variables that NumPy and PyTensor read, so before them

# isort: split
import numpy as np
import pytest

import alexnet
from alexnet.backends import BACKENDS, mode_of
from alexnet.native import compiler
from tests.cuda_emulator import NotBuilt, find

sys.path.insert(0, str(Path(alexnet.__file__).parents[1]))

# A process of pytest runs a whole file; these take two minutes each.
LONGEST = {"test_examples.py", "test_several_workers.py", "test_survival.py", "test_train.py"}


def pytest_collection_modifyitems(items):
    """Put the longest files first: if one of them were last, the other process would wait for it."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_report_header():
    return f"PyTensor's flags: {environment.FLAGS}"


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend's name; those that this machine lacks are skipped."""
    if request.param == "cpu" and not compiler.compiler_available():
        pytest.skip("the cpu backend needs a C compiler")
    if request.param == "jax":
        pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")
    return request.param


@pytest.fixture
def mode(backend):
    """The PyTensor mode of the backend."""
    return mode_of(backend)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def default_sighup():
    """Give started processes the default action of SIGHUP, even if nohup has started pytest."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def cuda_emulator():
    """The emulated CUDA driver with the real PyCUDA, for tests that start processes: tests/cuda_emulator/README.md."""
    try:
        return find()
    except NotBuilt as reason:
        pytest.skip(str(reason))
