"""Which strategy the settings select, and the jobs in which a strategy is refused."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from alexnet.config import ConfigError
from multigpu.exchange import STRATEGIES, strategy_of
from tests.multigpu.exchange import ranks

PIPES = {"over_mpi": False}
TWO_HOSTS = {"on_one_host": False, "local_size": 1, "hosts": ["here", "there"]}


def select(name, comm=(), **settings):
    """Return the strategy of two workers of one MPI job on one host; `comm` changes that."""
    given = {"size": 2, "rank": 0, "local_size": 2, "on_one_host": True, "over_mpi": True, "hosts": ["here", "here"]}
    return strategy_of(ranks.config_of(name, **settings), SimpleNamespace(**given | dict(comm)))


@pytest.mark.parametrize("comm, name", [({}, "peer"), (PIPES, "peer"), (TWO_HOSTS, "asa32")])
def test_auto_prefers_peer_on_one_machine(comm, name):
    assert select("auto", comm) is STRATEGIES[name]


def test_outside_strategy_is_selected_by_its_address():
    assert select(f"{ranks.__name__}:GatherStrategy") is ranks.GatherStrategy


@pytest.mark.parametrize("name, comm, message", [
    ("copper32", {}, "exchange: there is no strategy 'copper32'"),
    ("peer", TWO_HOSTS, "exchange=peer needs all workers on one machine; exchange=auto does not"),
    ("peer", {"size": 17}, "exchange=peer supports up to 16 workers, got 17"),
    ("ar", PIPES, "exchange=ar moves arrays over MPI, so the workers have to be started by it: mpiexec -n 2"),
])
def test_strategy_is_refused_in_other_jobs(name, comm, message):
    with pytest.raises(ConfigError, match=message):
        select(name, comm)


@pytest.mark.parametrize("name", ["auto", "peer", "ar", "asa32", "copper", "copper16"])
def test_error_feedback_is_refused_by_other_strategies(name):
    with pytest.raises(ConfigError, match="error_feedback is a setting of exchange=asa16.* must stay false, got true"):
        select(name, feedback=True)


@pytest.mark.parametrize("devices", ["cpu", "cuda0", "cuda0,cuda0"])
def test_nccl_is_refused_without_one_gpu_per_rank(devices):
    detail = "" if devices == "cpu" else " for 2 ranks on here"
    with pytest.raises(ConfigError, match=f"nccl32 needs a GPU for each rank.* got devices={devices}{detail}$"):
        select("nccl32", devices=devices)


def test_nccl_is_refused_without_nccl4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "nccl", None)
    with pytest.raises(ConfigError, match=r"exchange=nccl16 needs nccl4py, which cannot be imported .*pip install"):
        select("nccl16")


def test_registry_imports_no_optional_library():
    program = "import sys; from multigpu.exchange import STRATEGIES; print(len(STRATEGIES), *sys.modules)"
    n, *modules = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert int(n) == len(STRATEGIES)
    assert {module.partition(".")[0] for module in modules}.isdisjoint({"mpi4py", "nccl", "pycuda", "jax"})
