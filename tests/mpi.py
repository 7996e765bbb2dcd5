"""Ranks for tests: an MPI job that does one task after the other, on its first few ranks, and jobs of train.py.

    team = MpiTeam(4)                                                       # or a module's: team = team_of(4)
    results = team.run("tests.multigpu.asa_tasks:sum_up", 100, size=3)      # sum_up(partners, 100) on ranks 0, 1 and 2

    job = Job(folder, 4, script, "key=value", FAULT="kill")                 # mpiexec, started
    status, said = job.finish(seconds)                                      # and nothing of it is left

A task is named, so that the test itself needs no MPI; it gets multigpu.mpi.MpiPartners of so many ranks.  A result is
what it returned, or the exception that it raised.
"""

import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path

import pytest

from benchmarks.mpi import NEEDED, VARIABLES, mpiexec

ERRORS = (AssertionError, ValueError, ArithmeticError, RuntimeError)
# what Open MPI's mpiexec says of a status other than 0, between two lines of dashes, and its zero byte there
FRAMED = re.compile(r"^\0?-{60,}\n(?:(?!-{60}).*\n)*?-{60,}\n\0?", re.MULTILINE)
needs_mpi = pytest.mark.skipif(mpiexec() is None, reason=NEEDED)


def command(size, *arguments):
    """mpiexec of `size` ranks of this Python under mpi4py."""
    return [mpiexec(), "-n", str(size), sys.executable, "-m", "mpi4py", *map(str, arguments)]


def environment(**more):
    path = os.pathsep.join(filter(None, sys.path))
    return os.environ | VARIABLES | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more


class MpiTeam:
    """`size` ranks, started once; run() gives the first few of them a task."""

    def __init__(self, size):
        self.size, self._folder = size, tempfile.TemporaryDirectory()
        place = str(Path(self._folder.name, "line"))
        listener = connection.Listener(place, "AF_UNIX")
        self._output = Path(self._folder.name, "output")
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                command(size, "-m", "tests.mpi", place), env=environment(), stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self._line = listener.accept()
        listener.close()

    def run(self, task, *arguments, size=None, seconds=60):
        """What the task, "module:function", returned on each rank, or the exception that it raised there."""
        self._line.send((task, size or self.size, arguments))
        if not self._line.poll(seconds):
            self.close(grace=0)
            raise TimeoutError(f"{task} on {size or self.size} ranks takes longer than {seconds} s")
        try:
            return self._line.recv()
        except EOFError:
            self._process.wait(10)
            raise RuntimeError(f"the ranks have died in {task}: {self._output.read_text()}") from None

    def close(self, grace=10):
        self._line.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()                 # its ranks end with it
            self._process.wait()
        self._folder.cleanup()


class Job:
    """mpiexec of a script with its arguments, started; what it prints goes to files in the folder.

    under          how Python runs the script
    within, across what goes before mpiexec, and after it, where the ranks are on several hosts
    variables      of the environment; by one of them all its processes are found again
    """

    def __init__(self, folder, size, *arguments, under=("-m", "mpi4py"), within=(), across=(), **variables):
        self._mark = f"TEST_JOB={folder}:{time.monotonic_ns()}"
        self._shared = orphans()
        name, _, value = self._mark.partition("=")
        self.error, self.printed = Path(folder, "stderr"), Path(folder, "stdout")
        with self.error.open("w") as error, self.printed.open("w") as printed:
            self.process = subprocess.Popen(
                [*within, mpiexec(), *across, "-n", str(size), sys.executable, *under, *map(str, arguments)],
                env=environment(**{name: value}, **variables), stdout=printed, stderr=error, start_new_session=True,
            )  # fmt: skip

    def processes(self, *words):
        """{pid: its command line} of those that run now, and say these words there."""
        found = {}
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with suppress(OSError):
                    command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    marked = self._mark.encode() in (place / "environ").read_bytes().split(b"\0")
                    if marked and all(word in command for word in words):
                        found[int(place.name)] = command
        return found

    def wait_for(self, condition, seconds=120):
        """Wait until the condition holds, with the job still there."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, self.error.read_text()
            time.sleep(0.01)

    def finish(self, seconds=120):
        """(mpiexec's exit status, what others than it said on standard error); nothing is left then."""
        try:
            status = self.process.wait(seconds)
            end = time.monotonic() + 5
            while (left := self.processes() or orphans() - self._shared) and time.monotonic() < end:
                time.sleep(0.05)
            assert not left, f"{left} is left"
            return status, FRAMED.sub("", self.error.read_text(errors="replace"))
        finally:
            self.kill()

    def kill(self):
        """End what is left of it."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def orphans():
    """Names of the files in shared memory that no process has mapped."""
    names = set(os.listdir("/dev/shm"))
    for place in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            names -= set(re.findall(r"/dev/shm/(\S+)", place.read_text()))
    return names


def team_of(size):
    """A module's fixture, an MpiTeam: each test may have the first few of its ranks."""

    @pytest.fixture(scope="module")
    def team():
        team = MpiTeam(size)
        yield team
        team.close()

    return team


def results(found):
    """What the ranks, or workers, returned; raises the first error of one."""
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


def serve(place):
    """A rank of an MpiTeam: one task after the other, until the test hangs up."""
    mpi = pkgutil.resolve_name("multigpu.mpi")
    world = mpi.MPI.COMM_WORLD
    world.Barrier()
    mpi.leave_no_files()
    line = connection.Client(place, "AF_UNIX") if world.rank == 0 else None
    while (order := told(world, next_order(line)) if line else heard(world)) is not None:
        task, size, arguments = order
        comm = world.Split(world.rank < size, world.rank)
        result = attempt(task, mpi.MpiPartners(comm), arguments) if world.rank < size else None
        found = world.gather(result)
        if line:
            line.send(found[:size])
        comm.Free()


def told(world, order):
    """Have the other ranks hear an order of rank 0; returns it."""
    for other in range(1, world.size):
        world.send(order, other)
    return order


def heard(world):
    """The next order; it is waited for asleep: in a call of MPI's the ranks that a task leaves out would spin."""
    while not world.iprobe(source=0):
        time.sleep(0.001)
    return world.recv(source=0)


def who(partners):
    return partners.rank, partners.size


def next_order(line):
    try:
        while not line.poll(0.01):
            time.sleep(0)
        return line.recv()
    except (EOFError, ConnectionError):
        return None


def attempt(task, partners, arguments):
    try:
        return pkgutil.resolve_name(task)(partners, *arguments)
    except ERRORS as error:
        return error


if __name__ == "__main__":
    serve(sys.argv[1])
