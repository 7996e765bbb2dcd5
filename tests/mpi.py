"""Ranks for tests: an MPI job that runs tasks on its first few ranks, and jobs of train.py.

    team = MpiTeam(4)                                                       # or a module's: team = team_of(4)
    results = team.run("tests.multigpu.exchange.ranks:sum_up", 100, size=3)      # sum_up(comm, 100) on ranks 0, 1 and 2

    job = Job(folder, 4, script, "key=value", FAULT="kill")                 # starts mpiexec
    status, errors = job.finish(seconds)                                    # checks that no process remains

A task is given by name, so the test does not import MPI. It receives an MpiCommunicator of `size` ranks. Its result is
its return value or the exception that it raised.
"""

import importlib.util
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path

import pytest

ERRORS = (AssertionError, ValueError, ArithmeticError, RuntimeError)
# Open MPI's message about an exit status other than 0, framed by two lines of dashes, with its zero bytes
FRAMED = re.compile(r"^\0?-{60,}\n(?:(?!-{60}).*\n)*?-{60,}\n\0?", re.MULTILINE)
NEEDED = "mpi4py and an MPI are needed: pip install mpi4py mpich"
# Allow root, and more ranks than cores: those that wait sleep (MPICH) or yield (Open MPI)
VARIABLES = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
}


def mpiexec():
    """Return the path of mpiexec, next to the Python executable or on PATH; None if MPI or mpi4py is missing."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


needs_mpi = pytest.mark.skipif(mpiexec() is None, reason=NEEDED)


def command(size, *arguments):
    """Return the mpiexec command for `size` ranks of this Python under mpi4py."""
    return [mpiexec(), "-n", str(size), sys.executable, "-m", "mpi4py", *map(str, arguments)]


def environment(**more):
    path = os.pathsep.join(filter(None, sys.path))
    return os.environ | VARIABLES | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more


class MpiTeam:
    """`size` ranks that start once; run() executes a task on the first few of them."""

    def __init__(self, size):
        self.size, self._folder = size, tempfile.TemporaryDirectory()
        place = str(Path(self._folder.name, "line"))
        listener = connection.Listener(place, "AF_UNIX")
        self._output = Path(self._folder.name, "output")
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                command(size, "-m", "tests.mpi", place), env=environment(), stdout=output, stderr=output,
                start_new_session=True,
            )
        self._line = listener.accept()
        listener.close()

    def run(self, task, *arguments, size=None, seconds=60):
        """Run the task "module:function"; return for each rank its return value or the exception it raised."""
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
            self._process.kill()                 # the ranks end with mpiexec
            self._process.wait()
        self._folder.cleanup()


class Job:
    """A started mpiexec of a script with its arguments; its output goes to files in the folder.

    under          options with which Python runs the script
    within, across commands before mpiexec and options after it, for ranks on several hosts
    variables      environment variables; an additional one identifies all processes of the job
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
            )

    def processes(self, *words):
        """Return {pid: command line} of the job's running processes whose command lines contain these words."""
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
        """Wait until the condition holds; fail if the job ends first."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, self.error.read_text()
            time.sleep(0.01)

    def finish(self, seconds=120):
        """Return (mpiexec's exit status, standard error without mpiexec's messages); check that no process remains."""
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
        """Kill the remaining processes."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def orphans():
    """Return the names of shared memory files that no process has mapped."""
    names = set(os.listdir("/dev/shm"))
    for place in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            names -= set(re.findall(r"/dev/shm/(\S+)", place.read_text()))
    return names


def team_of(size):
    """Return a module-scoped fixture that yields an MpiTeam; each test can use its first few ranks."""

    @pytest.fixture(scope="module")
    def team():
        team = MpiTeam(size)
        yield team
        team.close()

    return team


def results(found):
    """Return the results of the ranks or workers; raise the first exception among them."""
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


def serve(place):
    """Main function of an MpiTeam's rank: run tasks until the test closes the connection."""
    mpi = pkgutil.resolve_name("multigpu.mpi.communicator")
    world = mpi.MPI.COMM_WORLD
    world.Barrier()
    mpi.leave_no_files()
    line = connection.Client(place, "AF_UNIX") if world.rank == 0 else None
    while (order := broadcast_order(world, next_order(line)) if line else receive_order(world)) is not None:
        task, size, arguments = order
        comm = world.Split(world.rank < size, world.rank)
        result = attempt(task, mpi.MpiCommunicator(comm), arguments) if world.rank < size else None
        wait_for_all(world)
        found = world.gather(result)
        if line:
            line.send(found[:size])
        comm.Free()


def broadcast_order(world, order):
    """Send an order of rank 0 to the other ranks; return it."""
    for other in range(1, world.size):
        world.send(order, other)
    return order


def receive_order(world):
    """Return the next order. Sleep while waiting: in a blocking MPI call, ranks without a task would spin."""
    while not world.iprobe(source=0):
        time.sleep(0.004)
    return world.recv(source=0)


def wait_for_all(world):
    """Return when all ranks have ended their part of the task. Sleep while waiting, as in receive_order()."""
    barrier = world.Ibarrier()
    while not barrier.Test():
        time.sleep(0.001)


def who(comm):
    return comm.rank, comm.size


def next_order(line):
    try:
        while not line.poll(0.01):
            time.sleep(0)
        return line.recv()
    except (EOFError, ConnectionError):
        return None


def attempt(task, comm, arguments):
    try:
        return pkgutil.resolve_name(task)(comm, *arguments)
    except ERRORS as error:
        return error


if __name__ == "__main__":
    serve(sys.argv[1])
