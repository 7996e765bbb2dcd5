"""A launcher under test: started as from a shell, observed with all its descendants, and killed on request."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.mpi import orphans
from tests.multigpu.fakes import workers

WORKERS = Path(workers.__file__)
GONE = 5.0                                       # seconds within which every process of a run must end
OF_MPI = "mpich_shm_", "ucx_shm_posix_"           # in /dev/shm, of MPI jobs of other tests


class Child(NamedTuple):
    """A process; the start time distinguishes it from a later process with the same pid."""

    pid: int
    started: str


class Run:
    """A launcher of the fakes in a separate process group, as a shell starts it, and all its children."""

    def __init__(self, folder, arguments, script=WORKERS, name="stderr"):
        self.folder = folder
        self.shared = orphans()
        self.error = folder / name
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        self.environment = environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.command = [sys.executable, str(script), *map(str, arguments)]

    def start(self, **environment):
        printed = self.error.with_suffix(".printed")
        with open(self.error, "w", encoding="utf-8") as error, open(printed, "w", encoding="utf-8") as printed:
            self.launcher = subprocess.Popen(
                self.command, stdout=printed, stderr=error, start_new_session=True, env=self.environment | environment
            )
        return self

    def printed(self):
        return self.error.with_suffix(".printed").read_text()

    def wait_for(self, name):
        """Wait until a worker writes a mark; return its value."""
        end = time.monotonic() + 20
        while not (self.folder / name).exists():
            assert time.monotonic() < end and self.launcher.poll() is None, self.error.read_text()
            time.sleep(0.005)
        return json.loads((self.folder / name).read_text())

    def wait_for_reading(self, start, rank=0):
        """Wait until the loader reads request `start`."""
        end = time.monotonic() + 20
        log = self.folder / f"reads{rank}"
        while not log.exists() or f"{start} " not in log.read_text():
            assert time.monotonic() < end and self.launcher.poll() is None, self.error.read_text()
            time.sleep(0.005)

    def pid(self, which, rank=0):
        return self.launcher.pid if which == "launcher" else self.wait_for(f"pids{rank}")[which]

    def kill(self, pid):
        """Send SIGKILL to one process of the run; check that all others end in time."""
        members = family(self.launcher.pid)
        assert pid in [child.pid for child in members]
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        ended = self.all_gone(members)
        assert time.monotonic() - began < GONE
        return ended

    def all_gone(self, members, seconds=GONE):
        """Wait for the end and check what holds for every end; return the exit status and the standard error."""
        status = self.launcher.wait(seconds)
        end = time.monotonic() + GONE
        while (left := [child for child in members if is_running(child)]) and time.monotonic() < end:
            time.sleep(0.01)
        assert left == []
        new = orphans() - self.shared
        assert {name for name in new if not name.startswith(OF_MPI)} == set()
        return status, self.error.read_text()

    def finish(self, seconds=20):
        status = self.launcher.wait(seconds)
        return status, self.error.read_text()


def state_of(pid):
    """Return the state, parent and start time of a process; None if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), fields[19]


def family(root):
    """Return root and all its descendants as Child."""
    states = {int(name): state_of(name) for name in os.listdir("/proc") if name.isdigit()}
    states = {pid: state for pid, state in states.items() if state}
    members = [root]
    for pid in members:
        members += [child for child, state in states.items() if state[1] == pid]
    return [Child(pid, states[pid][2]) for pid in members]


def is_running(child):
    state = state_of(child.pid)
    return state is not None and state[0] != "Z" and state[2] == child.started


def lines(text):
    return text.strip().splitlines()


def clean_up(runs):
    """Kill the remaining processes of the runs, for tests that fail."""
    for prepared in runs:
        members = family(prepared.launcher.pid) if prepared.launcher.poll() is None else []
        for child in members:
            if is_running(child):
                os.kill(child.pid, signal.SIGKILL)
        prepared.launcher.wait()
