"""The settings files of published runs: each differs from the defaults, builds its network and trains."""

from pathlib import Path

import pytest

from alexnet.config import DEFAULTS, load_config, read_settings
from alexnet.models import model_class
from alexnet.run.recorder import read_records
from multigpu import worker
from multigpu.communicator import PipeCommunicator
from multigpu.rules.base import check_rule
from tests.mpi import Job, needs_mpi
from tests.tiny import Line, make_data

TOP = Path(__file__).parents[1]
FILES = sorted((TOP / "configs").glob("*.yaml"))
DEFAULT = read_settings(DEFAULTS)
SMALL = {"model": "tiny", "devices": "cpu", "batch_size": 4, "micro_batch_size": "null",
         "n_iterations": 2, "para_load": "false", "run_name": "run"}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "set", train=8, validation=4, per_file=4)


def load(path, **changes):
    return load_config([f"--config={path}", *(f"{name}={value}" for name, value in changes.items())])


def test_config_sets_only_what_differs_from_the_defaults(path):
    settings = read_settings(path)
    assert settings and {name for name, value in settings.items() if value == DEFAULT[name]} == set()


def test_config_is_accepted_and_names_a_network(path):
    config = load(path, data="/batches")
    check_rule(config)
    assert model_class(config.model).outline().shapes


def test_config_states_command_result_and_source(path):
    text = path.read_text("utf-8")
    assert f"--config configs/{path.name} data=OUT" in text
    assert "\n# Published: " in text and "\n# Source: " in text


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FILES if load(path).rule == "bsp"], ids=lambda path: path.stem)
def test_config_trains_for_two_iterations(path, data, tmp_path):
    worker.work(load(path, data=data, output=tmp_path, **SMALL), "cpu", Line(), PipeCommunicator(0, {}))
    assert costs_in(tmp_path / "run") == 2


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize("path", [path for path in FILES if load(path).rule != "bsp"], ids=lambda path: path.stem)
def test_config_trains_over_mpi(path, data, tmp_path):
    settings = SMALL | {"model": "tests.tiny:Tiny", "data": data, "output": tmp_path}
    arguments = (f"{name}={value}" for name, value in settings.items())
    status, errors = Job(tmp_path, 3, TOP / "train.py", f"--config={path}", *arguments).finish(60)
    assert status == 0, errors
    assert costs_in(tmp_path / "run")


def costs_in(folder):
    return sum(record["kind"] == "train" for record in read_records(folder))
