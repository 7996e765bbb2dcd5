"""Two hosts on one machine: ranks in two network namespaces, joined by a cable of the kernel's, train across it.

Each namespace has an address of its own, its end of a veth pair; the second also a host name and a /dev/shm of its own.
In ssh's place mpiexec calls a script that enters the namespace of the address.  Needs root, and to be asked for:

    TWO_HOSTS=1 pytest tests/multigpu/test_two_hosts.py

because MPICH, new to such a cable, now and then does not find the other host ("unreachable") and ends at its start.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from alexnet import checkpoint
from tests import tiny, tiny_train
from tests.mpi import Job, mpiexec, needs_mpi, orphans
from tests.multigpu import several_doubles

A, B = "10.77.31.1", "10.77.31.2"
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
test "$1" = {address} || {{ echo "agent: there is no host $1" >&2; exit 9; }}
shift
exec ip netns exec {space} unshare --uts --mount sh -c '
    hostname second && mount -t tmpfs tmpfs /dev/shm && exec sh -c "$1"' agent "$*"
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def obstacle():
    """Why there can be no two hosts here, or None."""
    if "TWO_HOSTS" not in os.environ:
        return "TWO_HOSTS=1 asks for it: MPICH does not find the other host every time"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "ip (iproute2) and unshare (util-linux) are needed to make two hosts of one"
    space = f"probe{os.getpid()}"
    try:
        ip("netns", "add", space)
        subprocess.run(["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "true"], check=True)
        ip("link", "add", f"p{os.getpid()}a", "netns", space, "type", "veth", "peer", "name", f"p{os.getpid()}b",
           "netns", space)  # fmt: skip
    except subprocess.CalledProcessError as error:
        return f"this kernel makes no network namespaces: {(error.stderr or '').strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", space], capture_output=True)
    return None


WHY_NOT = obstacle()
pytestmark = [pytest.mark.mpi, needs_mpi, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


class JobOfHosts(Job):
    """A Job that clears away what MPICH now and then leaves in /dev/shm on a machine with a single one of its ranks."""

    def finish(self, seconds=120):
        self.process.wait(seconds)
        for name in orphans() - self._shared:
            Path("/dev/shm", name).unlink(missing_ok=True)
        return super().finish(seconds)


class Hosts:
    """The two namespaces; prefix and variables have Job start its ranks there."""

    def __init__(self, folder):
        number = os.getpid()
        self.spaces, self.ends = (f"first{number}", f"second{number}"), (f"v{number}a", f"v{number}b")
        self.agent = folder / "agent"
        self.agent.write_text(AGENT.format(address=B, space=self.spaces[1]))
        self.agent.chmod(0o755)

    def __enter__(self):
        try:
            for space in self.spaces:
                ip("netns", "add", space)
            (one, other), (first, second) = self.ends, self.spaces
            ip("link", "add", one, "netns", first, "type", "veth", "peer", "name", other, "netns", second)
            for space, end, address in zip(self.spaces, self.ends, (A, B), strict=True):
                ip("-n", space, "addr", "add", f"{address}/24", "dev", end)
                ip("-n", space, "link", "set", end, "addrgenmode", "none")       # an IPv6 address is not ready at once
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", end, "up")
        except subprocess.CalledProcessError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def start(self, folder, *arguments, **variables):
        """A Job of one rank on each host, started from the first."""
        within = "ip", "netns", "exec", self.spaces[0]
        if "open" in subprocess.run([mpiexec(), "--version"], capture_output=True, text=True).stdout.lower():
            across = "--host", f"{A},{B}", "--mca", "btl", "tcp,self", "--mca", "pml", "ob1"
            variables |= {"PRTE_MCA_plm_ssh_agent": str(self.agent)}
        else:
            across = "-launcher", "ssh", "-launcher-exec", str(self.agent), "-hosts", f"{A},{B}", "-ppn", "1"
            variables |= {"UCX_TLS": "tcp,self"}             # else it finds out that it is one machine, and copies
        return JobOfHosts(folder, 2, *arguments, within=within, across=across, **variables)

    def sent(self):
        """Bytes that have gone over the cable so far, from the first to the second."""
        place = f"/sys/class/net/{self.ends[0]}/statistics/tx_bytes"
        command = ["ip", "netns", "exec", self.spaces[0], "cat", place]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def test_two_hosts_train_as_one_with_everything_over_the_cable(hosts, tmp_path):
    data, steps = tiny.make_data(tmp_path / "set", train=16, validation=4), 4
    common = {"model": "tiny", "n_epochs": 9, "n_iterations": steps, "dropout_rate": 0, "rand_crop": "false"}
    given = {"data": data, "output": tmp_path / "runs", "batch_size": 4} | common
    settings = [f"{key}={value}" for key, value in given.items()]
    before = hosts.sent()
    job = hosts.start(tmp_path, Path(tiny_train.__file__), *settings, "run_name=two", "exchange=asa32")
    assert job.finish(120) == (0, "")
    arrays = checkpoint.load(checkpoint.latest(tmp_path / "runs" / "two"))[0]
    weights = sum(array.nbytes for name, array in arrays.items() if name.endswith((".W", ".b")))
    assert hosts.sent() - before > steps * weights           # asa32: each of two ranks sends 2 (N-1)/N of them, so all
    one = tiny.run(data, tmp_path / "runs", batch_size=8, run_name="one", para_load="false", **common)
    expected = checkpoint.load(checkpoint.latest(one))[0]
    for name in expected:
        scale = max(1e-6, np.abs(expected[name]).max())
        np.testing.assert_allclose(arrays[name] / scale, expected[name] / scale, rtol=0, atol=1e-5, err_msg=name)


def test_a_rank_killed_on_the_other_host_is_named(hosts, tmp_path):
    variables = {"FAULT": "killed,computing,1,2", "WENT": str(tmp_path / "went")}
    settings = f"output={tmp_path / 'runs'}", "run_name=run", "n_epochs=2"
    (tmp_path / "runs" / "run").mkdir(parents=True)
    status, said = hosts.start(tmp_path, Path(several_doubles.__file__), *settings, **variables).finish()
    assert status != 0
    assert re.search(r"^rank 1 \(pid \d+ on second\) has died: .*$", said, re.MULTILINE), said
