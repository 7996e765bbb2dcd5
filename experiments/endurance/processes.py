"""A program that a trial starts, with all its processes: found by an environment variable, also after they lost it.

    with Program(command, folder) as program:
        program.wait_for(lambda: log.exists())
        os.kill(program.find("worker")[0].pid, signal.SIGKILL)
        wrong = program.left(program.end(30))

Every process inherits the variable, so one whose parent has died is found, too. The program's TMPDIR is a folder of its
trial. What it leaves in /dev/shm are files that appeared since its start and that no process has mapped, so no other
program of the machine should leave files there at that time.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MARK = "ENDURANCE_PROGRAM"
SHARED = Path("/dev/shm")
PAGE = os.sysconf("SC_PAGE_SIZE")
GONE = 10.0                                      # seconds within which all processes of an ended program must end
LAST = 2000                                      # characters of standard error that are kept


class Process(NamedTuple):
    """A running process of a program: its id, that of its parent, and its command."""

    pid: int
    parent: int
    command: tuple[str, ...]


class Sample(NamedTuple):
    """Resources of one process: resident memory in bytes, open descriptors, threads."""

    memory: int
    descriptors: int
    threads: int


class Program:
    """A started program. As a context manager, it kills what is left at its end.

    Args:
        command: the program and its arguments.
        folder: for its output and its TMPDIR; created.
        variables: of its environment.
    """

    def __init__(self, command, folder, **variables):
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.errors, self.printed = folder / "stderr", folder / "stdout"
        self._mark = f"{MARK}={folder}:{time.monotonic_ns()}".encode()
        self._shared = unmapped()
        name, _, value = self._mark.decode().partition("=")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        self.began = time.monotonic()
        with self.errors.open("wb") as errors, self.printed.open("wb") as printed:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=printed, stderr=errors,
                start_new_session=True, env=environment | variables | {name: value},
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        end = time.monotonic() + GONE
        while (left := self.processes()) and time.monotonic() < end:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.01)
        self.process.wait()

    def processes(self):
        """Return the running processes of the program, by process id."""
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with suppress(OSError):
                    if self._mark in (place / "environ").read_bytes().split(b"\0"):
                        parent = int((place / "stat").read_bytes().rpartition(b")")[2].split()[1])
                        command = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
                        found.append(Process(int(place.name), parent, tuple(command)))
        return sorted(found)

    def roles(self):
        """Return {role: processes} of the running processes; see role_of."""
        processes = self.processes()
        found = {}
        for process in processes:
            found.setdefault(role_of(process, processes), []).append(process)
        return found

    def find(self, role):
        """Return the running processes of a role, by process id."""
        return self.roles().get(role, [])

    def said(self):
        """Return the end of what the program has written to standard error."""
        return self.errors.read_text(encoding="utf-8", errors="replace")[-LAST:]

    def wait_for(self, condition, seconds):
        """Return whether the condition becomes true within this time, and before the program ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.01)
        return condition()

    def end(self, seconds):
        """Wait for the end; return the exit status, negative for a signal, or None if the program still runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def shared_memory(self):
        """Return the names of the files in /dev/shm that have appeared since the start and are mapped by no process."""
        return sorted(unmapped() - self._shared)

    def left(self, seconds=GONE):
        """Return sentences about what the ended program leaves: processes, shared memory, temporary files."""
        end = time.monotonic() + seconds
        while (found := self._left()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _left(self):
        found = [f"process {each.pid} is left: {' '.join(each.command)[:200]}" for each in self.processes()]
        found += [f"{SHARED / name} is left" for name in self.shared_memory()]
        return found + [f"{path.name} is left in TMPDIR" for path in sorted(self.temporary.iterdir())]


def role_of(process, processes):
    """Return what a process does in its program.

    launcher, worker, loader; of an MPI job: supervisor, mpiexec, proxy, wrapper, rank, monitor; tracker of
    multiprocessing's resources; fork: a child of the supervisor that does not run its command yet.

    Args:
        processes: all of the program.
    """
    words = " ".join(process.command)
    parent = next((each for each in processes if each.pid == process.parent), None)
    first = Path(process.command[0]).name if process.command else ""
    if "multigpu.failure.monitor" in words:
        return "monitor"
    if "resource_tracker" in words:
        return "tracker"
    if "spawn_main" in words:
        return "loader" if parent and {"mpi4py", "spawn_main"} & set(re.findall(r"\w+", " ".join(parent.command))) \
            else "worker"
    if first.startswith("mpiexec"):
        return "mpiexec"
    if first.startswith("hydra"):
        return "proxy"
    if "restart" in process.command:
        return "fork" if parent and parent.command == process.command else "supervisor"
    if "mpi4py" in process.command:
        wraps = any(each.parent == process.pid and each.command == process.command for each in processes)
        return "wrapper" if wraps else "rank"
    return "launcher"


def sample(pid):
    """Return the Sample of a process, or None if it has ended."""
    place = Path("/proc", str(pid))
    try:
        memory = int((place / "statm").read_text(encoding="utf-8").split()[1]) * PAGE
        status = (place / "status").read_text(encoding="utf-8", errors="replace")
        return Sample(memory, len(os.listdir(place / "fd")), int(re.findall(r"^Threads:\s+(\d+)", status, re.M)[0]))
    except (OSError, IndexError):
        return None


def unmapped():
    """Return the names of the files in /dev/shm that no process has mapped."""
    names = set(os.listdir(SHARED))
    for place in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            names -= set(re.findall(r"/dev/shm/(\S+)", place.read_text(encoding="utf-8", errors="replace")))
    return names


def size_of(paths):
    """Return the total size of files in bytes; without those that have just been removed."""
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.stat().st_size
    return total


def train_command(program=("train.py",), **settings):
    """Return the command that trains with these settings."""
    return [sys.executable, *program, *(f"{name}={value}" for name, value in settings.items())]


def mpi_command(size, **settings):
    """Return the command of an MPI job of `size` ranks, which its supervisor restarts."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    rank = train_command(("-m", "mpi4py", "train.py"), **settings)
    return [sys.executable, "-m", "multigpu", "restart", mpiexec if mpiexec.exists() else "mpiexec", "-n", size, *rank]
