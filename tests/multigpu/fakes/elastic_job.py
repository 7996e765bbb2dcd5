"""Clients that join late, leave and die: the fakes of several_workers with rule asgd and arrays of three pieces.

Run as a script, it replaces train.py, like several_workers. FAULT accepts the points of several_workers and these:

    coming       after a step
    joining      before a client, which has its device and its data, connects to the server
    moving       before each piece of an exchange is sent or received

Each step adds 1 to the weights, which start at 0. With server_scale=1 the center variable therefore equals the number
of steps pushed. In the folder `output`, a client marks that it has done LATER_STEPS. At its end it marks (its
iteration, its steps, its weights before its first step). At each save the server marks (the iteration, the steps
recorded of each client, the center variable).

The processes that it starts import this file, so it imports only what a loader needs.
"""

import os
import sys
import time
from pathlib import Path

from tests.multigpu.fakes.several_workers import FAULTS

LATER_STEPS = 12                                 # steps after which a client counts as started
PATIENCE = 30.0                                  # seconds


def come_late():
    """Wait until another client has done LATER_STEPS steps."""
    end = time.monotonic() + PATIENCE
    while not any(Path(os.environ["WENT"]).parent.glob("runs/begun*")) and time.monotonic() < end:
        time.sleep(0.01)


FAULTS["late"] = come_late


def work(*arguments):
    """Run a rank."""
    from tests.multigpu.fakes.elastic_training import work

    work(*arguments)


def main(arguments):
    from multigpu.mpi.rank_wrapper import end_with_proxy, wrap_rank

    end_with_proxy()
    wrap_rank()
    from multigpu.mpi import job  # after wrap_rank: it initialises MPI
    from multigpu.train import load_settings, with_run

    given = ["data=none", "batch_size=2", "rand_crop=false", "rule=asgd", "server_scale=1", *arguments]
    return job.run(lambda: with_run(load_settings(given)), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
