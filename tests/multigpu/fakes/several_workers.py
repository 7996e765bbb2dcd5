"""Workers for tests that kill processes: real processes, loop, loader and exchange, but a network without computation.

Run as a script, it replaces train.py:  several_workers.py key=value ...; started by MPI, it is a rank of an MPI job.
PAUSE=POINT,RANK in the environment: worker RANK, or its loader, marks this point in the folder `output` and waits.
FAULT=KIND,POINT,RANK,TIME: worker RANK writes the file WENT and fails when it reaches the point for the TIMEth time,
in one of the ways listed in FAULTS.

The processes that it starts import this file, so it imports only what a loader needs.
"""

import os
import signal
import sys
import time
from pathlib import Path

from alexnet.data.dataset import DataError
from tests.multigpu.fakes.workers import mark

STEPS = 6                                        # steps per epoch
SECOND = 2                                       # pause the second time that a point is reached


def go_wrong():
    raise ZeroDivisionError("the step is wrong")


def refuse():
    raise DataError("the data is wrong")


FAULTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashed": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "left": lambda: os._exit(0),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hung": lambda: time.sleep(1000),
    "bug": go_wrong,
    "data": refuse,
}


class Points:
    """Pause points of this process: it pauses at one of them until stop is requested; at "computing", until killed."""

    def __init__(self, folder, rank, stop_requested=lambda: False):
        self.point, _, pausing = os.environ.get("PAUSE", "").partition(",")
        self.folder, self.stop_requested = folder, stop_requested
        self.mine, self.times = pausing == str(rank), 0
        self.fault, self.fault_point, failing, left = os.environ.get("FAULT", ",,,0").split(",")
        self.failing, self.left = failing == str(rank), int(left)

    def reach(self, point, since=1):
        """If this point is selected, mark it and pause at its `since`-th call; if a fault is due here, inject it."""
        if self.failing and point == self.fault_point:
            self.left -= 1
            if not self.left:
                mark(Path(os.environ["WENT"]), True)
                FAULTS[self.fault]()
        if not self.mine or point != self.point:
            return
        self.times += 1
        if self.times == since:
            mark(self.folder / "reached", {"pid": os.getpid()})
            while self.point == "computing" or not self.stop_requested():
                time.sleep(0.01)

    def around(self, owner, name, before=None, after=None):
        """Call reach() for these points before and after each call of a method of the object `owner`."""
        method = getattr(owner, name)

        def call(*arguments, **named):
            self.reach(before, SECOND)
            result = method(*arguments, **named)
            self.reach(after, SECOND)
            return result

        setattr(owner, name, call)


class Reader:
    """A reader of zeros that reaches the loader's pause points first."""

    def __init__(self, folder, rank):
        self.points = Points(folder, rank)

    def read(self, request, out):
        self.points.reach("loading", SECOND)
        out[...] = 0


def work(*arguments):
    """Run a worker."""
    from tests.multigpu.fakes.idle_training import work

    work(*arguments)


def main(arguments):
    from multigpu.launch.launcher import launch
    from multigpu.mpi.rank_wrapper import end_with_proxy
    from multigpu.train import load_settings, started_by_mpi, with_run

    given = ["data=none", "batch_size=2", "rand_crop=false", *arguments]
    if started_by_mpi():
        end_with_proxy()
        from multigpu.mpi import job  # it initialises MPI

        return job.run(lambda: with_run(load_settings(given)), work)
    return launch(with_run(load_settings(given)), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
