"""Two hosts on one machine: ranks train in two network namespaces connected by a veth pair."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from alexnet.run import checkpoint_format
from tests import tiny, tiny_train
from tests.mpi import Job, mpiexec, needs_mpi
from tests.multigpu.fakes import several_workers
from tests.system import traffic
from tests.system.two_hosts import Hosts, burst_of, obstacle, run

WHY_NOT = obstacle()
pytestmark = [
    pytest.mark.system, pytest.mark.mpi, needs_mpi, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
]

FRAME = 1448 / 1514                              # minimum share of payload in full Ethernet frames


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def start(hosts, folder, *arguments, **variables):
    """Start a Job with one rank on each host."""
    within, across, needed = hosts.places(mpiexec())
    return Job(folder, 2, *arguments, within=within, across=across, **(variables | needed))


def sent(hosts):
    """Return the bytes that have left the first host so far."""
    within, place = ("ip", "netns", "exec", hosts.spaces[0]), f"/sys/class/net/{hosts.ends[0]}/statistics/tx_bytes"
    return int(run(*within, "cat", place))


def test_two_hosts_train_like_one_worker(hosts, tmp_path):
    data, steps = tiny.make_data(tmp_path / "set", train=16, validation=4), 4
    common = {"model": "tiny", "n_epochs": 9, "n_iterations": steps, "dropout_rate": 0, "rand_crop": "false"}
    given = {"data": data, "output": tmp_path / "runs", "batch_size": 4} | common
    settings = [f"{key}={value}" for key, value in given.items()]
    before = sent(hosts)
    job = start(hosts, tmp_path, Path(tiny_train.__file__), *settings, "run_name=two", "exchange=asa32")
    status, said = job.finish(120)
    assert (status, said) == (0, ""), said
    arrays = checkpoint_format.load(checkpoint_format.latest(tmp_path / "runs" / "two"))[0]
    weights = sum(array.nbytes for name, array in arrays.items() if name.endswith((".W", ".b")))
    assert sent(hosts) - before > steps * weights            # each of two ranks sends all its weights, plus messages
    one = tiny.run(data, tmp_path / "runs", batch_size=8, run_name="one", para_load="false", **common)
    expected = checkpoint_format.load(checkpoint_format.latest(one))[0]
    for name in expected:
        scale = max(1e-6, np.abs(expected[name]).max())
        np.testing.assert_allclose(arrays[name] / scale, expected[name] / scale, rtol=0, atol=1e-5, err_msg=name)


def test_strategies_send_the_computed_number_of_bytes(hosts, tmp_path):
    n = 1 << 20
    job = start(hosts, tmp_path, Path(traffic.__file__), n)
    status, said = job.finish(120)
    assert (status, said) == (0, ""), said
    found = json.loads(job.printed.read_text())
    for name, width in (("ar", 4), ("asa32", 4), ("asa16", 2), ("copper", 4), ("copper16", 2)):
        computed, counted = found[name]
        assert width * n <= computed < width * n + 4096, name    # two ranks: each sends its array and a step header
        assert computed <= counted < 1.02 * computed / FRAME, name


def test_a_killed_rank_on_the_other_host_is_reported(hosts, tmp_path):
    variables = {"FAULT": "killed,computing,1,2", "WENT": str(tmp_path / "went")}
    settings = f"output={tmp_path / 'runs'}", "run_name=run", "n_epochs=2", "exchange_what=weights"
    (tmp_path / "runs" / "run").mkdir(parents=True)
    status, said = start(hosts, tmp_path, Path(several_workers.__file__), *settings, **variables).finish()
    assert status != 0
    assert re.search(r"^rank 1 \(pid \d+ on second\) has died: .*$", said, re.MULTILINE), said


@pytest.mark.parametrize(("rate", "burst"), [("1gbit", 250_000), ("100mbit", 65_536), ("2.5gbit", 625_000)])
def test_burst_of_a_slow_link_is_short(rate, burst):
    assert burst_of(rate) == burst
