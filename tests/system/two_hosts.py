"""Two simulated hosts on one machine: two network namespaces with one address each, connected by a veth pair.

    python -m tests.system.two_hosts [--rate 1gbit] COMMAND ...

runs a command whose environment variable MPIEXEC starts MPI ranks on both hosts, for example the benchmark
`python -m benchmarks.mpi.strategies --ranks 2`. --rate limits the link, in bit, kbit, mbit or gbit per second.

The second host also has a separate host name and /dev/shm. Instead of ssh, mpiexec calls a script that enters the
namespace of the address. Requires root and Linux:

    with Hosts(folder) as hosts:                         # folder: for the script
        within, across, variables = hosts.places(mpiexec)
        subprocess.run([*within, mpiexec, *across, "-n", "2", ...], env=os.environ | variables)

runs two ranks, one on each host. Both share the machine's processors.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mpi import NEEDED, mpiexec

A, B = "10.77.31.1", "10.77.31.2"
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
test "$1" = {address} || {{ echo "agent: unknown host $1" >&2; exit 9; }}
shift
exec ip netns exec {space} unshare --uts --mount sh -c '
    hostname second && mount -t tmpfs tmpfs /dev/shm && exec sh -c "$1"' agent "$*"
"""
BURST = 0.002                                    # seconds; shorter bursts do not reach 1 Gbit/s
SECONDS = 10.0                                   # timeout for the link to come up


def obstacle():
    """Return the reason why two hosts cannot be created on this machine, or None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces require root"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "ip (iproute2) and unshare (util-linux) are not installed"
    space, ends = f"probe{os.getpid()}", (f"p{os.getpid()}a", f"p{os.getpid()}b")
    try:
        ip("netns", "add", space)
        run("ip", "netns", "exec", space, "unshare", "--uts", "--mount", "true")
        ip("link", "add", ends[0], "netns", space, "type", "veth", "peer", "name", ends[1], "netns", space)
    except subprocess.CalledProcessError as error:
        return f"the kernel does not support network namespaces: {(error.stderr or '').strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", space], capture_output=True)
    return None


def run(*command):
    """Run the command and return its standard output.

    Raises:
        CalledProcessError: the command has failed.
    """
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ip(*arguments):
    return run("ip", *arguments)


class Hosts:
    """Context manager of the two hosts, which exist inside its `with` block.

    Args:
        folder: for the script that mpiexec calls.
        rate: of the link, in each direction, in bit, kbit, mbit or gbit per second ("1gbit"); None: not limited.
    """

    def __init__(self, folder, rate=None):
        number = os.getpid()
        self.spaces, self.ends = (f"first{number}", f"second{number}"), (f"v{number}a", f"v{number}b")
        self._rate, self._agent = rate, Path(folder, "agent")
        self._agent.write_text(AGENT.format(address=B, space=self.spaces[1]))
        self._agent.chmod(0o755)

    def __enter__(self):
        try:
            for space in self.spaces:
                ip("netns", "add", space)
            (one, other), (first, second) = self.ends, self.spaces
            ip("link", "add", one, "netns", first, "type", "veth", "peer", "name", other, "netns", second)
            for space, end, address in zip(self.spaces, self.ends, (A, B), strict=True):
                ip("-n", space, "addr", "add", f"{address}/24", "dev", end)
                ip("-n", space, "link", "set", "lo", "up")
                ip("-n", space, "link", "set", end, "up")
                if self._rate is not None:
                    run("tc", "-n", space, "qdisc", "add", "dev", end, "root", "tbf", "rate", self._rate,
                        "burst", str(burst_of(self._rate)), "latency", "50ms")
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def _wait(self):
        """Wait until the kernel reports both ends of the link as up, which can take a second.

        UCX ignores interfaces that are not up, and would find no peer.
        """
        end = time.monotonic() + SECONDS
        while not all(self._runs(*each) for each in zip(self.spaces, self.ends, strict=True)):
            if time.monotonic() > end:
                raise TimeoutError(f"the link between the network namespaces is not up after {SECONDS:.0f} s")
            time.sleep(0.01)

    def _runs(self, space, end):
        place = f"/sys/class/net/{end}"          # newer kernels update the state when carrier is read
        return run("ip", "netns", "exec", space, "cat", f"{place}/carrier", f"{place}/operstate").split() == ["1", "up"]

    def places(self, mpiexec):
        """Return (arguments before mpiexec, arguments after it, environment variables) for one rank on each host."""
        within = "ip", "netns", "exec", self.spaces[0]
        if "open" in run(mpiexec, "--version").lower():
            across = "--host", f"{A},{B}", "--mca", "btl", "tcp,self", "--mca", "pml", "ob1"
            return within, across, {"PRTE_MCA_plm_ssh_agent": str(self._agent)}
        across = "-launcher", "ssh", "-launcher-exec", str(self._agent), "-hosts", f"{A},{B}", "-ppn", "1"
        return within, across, {"UCX_TLS": "tcp,self"}           # otherwise UCX detects one machine and copies


def burst_of(rate):
    """Return the bytes that may pass an idle link at once: what the rate carries in BURST, at least one large packet.

    A burst that does not depend on the rate would let whole messages pass a slow link as if it were fast.
    """
    digits, prefix = re.fullmatch(r"([\d.]+)([kmg]?)bit", rate).groups()
    per_second = float(digits) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[prefix] / 8
    return max(int(BURST * per_second), 1 << 16)


def sent():
    """Return the bytes sent so far by the host of this process, with headers, on all interfaces except loopback."""
    ends = [each for each in Path("/sys/class/net").iterdir() if each.name != "lo"]
    return sum(int((each / "statistics" / "tx_bytes").read_text()) for each in ends)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.system.two_hosts", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", help="of the link in each direction, for example 1gbit; default: not limited")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    reason = NEEDED if mpiexec() is None else obstacle()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, Hosts(folder, options.rate) as hosts:
        within, across, variables = hosts.places(mpiexec())
        start = shlex.join([*within, mpiexec(), *across])
        return subprocess.run(options.command, env=os.environ | variables | {"MPIEXEC": start}).returncode


if __name__ == "__main__":
    sys.exit(main())
