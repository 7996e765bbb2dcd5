"""Fake readers and workers, small enough to be killed often.

Run as a script, it is a launcher:  workers.py FUNCTION FOLDER key=value ...

The processes that it starts import this file, so it imports only what a loader needs.
"""

import ctypes
import itertools
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from alexnet.data.dataset import DataError, ReadError, Request, Segment
from multigpu.loader import ParallelBatches

SHAPE = (3, 4, 4, 8)
UNREADABLE = 1000                                # requests that start here or later cannot be read
FAILING = 2000                                   # the same, because the disk fails


def request(start, images=SHAPE[3]):
    """Return the request for `images` images from number `start` on."""
    return Request((Segment(Path("none.hkl"), start, start + images),))


def expected(request, dtype="uint8"):
    """Return the batch that a Reader produces: the request's first image number plus the index of each value."""
    _, start, stop, _ = request.segments[0]
    return (start + np.arange(3 * 4 * 4 * (stop - start))).reshape(3, 4, 4, -1).astype(dtype)


class Reader:
    """Writes the first image number of each request to `log`, sleeps for `reading` seconds, then fills the batch."""

    def __init__(self, reading=0.0, log=os.devnull):
        self.reading = reading
        self.log = log

    def read(self, request, out):
        start = request.segments[0].start
        with open(self.log, "a", encoding="utf-8") as log:
            print(start, os.environ.get("OMP_NUM_THREADS"), file=log)
        time.sleep(self.reading)
        if start >= FAILING:
            raise ReadError(f"the disk of none.hkl has failed at image {start}")
        if start >= UNREADABLE:
            raise DataError(f"none.hkl has no image {start}")
        out[...] = expected(request, out.dtype)


class ZeroReader:
    """A reader of all-zero batches of any shape."""

    def read(self, request, out):
        out[...] = 0


def train(config, device, link, comm):
    """Read and compute for `steps` batches, or until stopped; mark each step and the end in the folder."""
    folder = Path(config.folder)
    rank = comm.rank
    log = folder / f"reads{rank}"
    with ParallelBatches((config.reading, log), SHAPE, "uint8", make_reader=Reader, on_death=link.report) as batches:
        mark(folder / f"pids{rank}", {"worker": os.getpid(), "loader": batches.loader_pid, "device": device,
                                      "size": comm.size, "threads": os.environ["OMP_NUM_THREADS"]})
        for step, _ in enumerate(batches.read(map(request, range(config.steps)))):
            mark(folder / f"computing{rank}", step)
            compute(config.computing)
            mark(folder / f"step{rank}", step)
            if link.stop_requested():
                break
        mark(folder / f"between{rank}", True)
        time.sleep(config.between)
    mark(folder / f"saved{rank}", True)


def compute(seconds):
    """Compute without checking for Python signals: sleep in C, and resume when a signal interrupts the call."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        ctypes.CDLL(None).usleep(int(left * 1e6))


def never_stop(config, device, link, comm):
    """A worker that ignores stop requests."""
    mark(Path(config.folder) / f"computing{comm.rank}", 0)
    compute(60)


def fail(config, device, link, comm):
    """Worker 1 of two, or the only worker, fails as config.error specifies; the other one keeps computing."""
    if comm.rank < comm.size - 1:
        return never_stop(config, device, link, comm)
    from alexnet.config.schema import ConfigError

    errors = {"config": ConfigError, "data": DataError, "read": ReadError, "bug": ZeroDivisionError}
    raise errors[config.error](f"the {config.error} is wrong")


def report_peer(config, device, link, comm):
    """Worker 0 reports the death of worker 1.

    Worker 1 fails a moment later as config.error specifies; without config.error it keeps computing. With config.error
    "own", worker 0 itself raises an error after it has reported worker 1.
    """
    from alexnet.config.schema import ConfigError
    from multigpu.communicator import PeerDied

    if comm.rank == 0:
        link.report("worker 1 has died", caused_by_peer=True)
        compute(0.3)
        if config.error == "own":
            raise ConfigError("the own is wrong")
        raise PeerDied("worker 1 has died")
    if config.error == "own":
        compute(60)
    compute(0.3)
    fail(config, device, link, comm) if config.error else compute(60)


def exit_first(config, device, link, comm):
    """All workers except worker 0 send it a message and exit; worker 0 waits and marks each message and each exit."""
    pipes = comm._pipes
    if comm.rank == 0:
        for other, pipe in pipes.items():
            mark(Path(config.folder) / f"received{other}", pipe.recv())
            try:
                pipe.recv()
            except EOFError:
                mark(Path(config.folder) / f"exited{other}", True)
    else:
        pipes[0].send(f"from {comm.rank} of {comm.size}")


def mark(path, value):
    """Write a value to a file atomically, for the test that waits for it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def abandon(config):
    """Exit without closing a slow loader."""
    batches = ParallelBatches((60.0,), SHAPE, "uint8", make_reader=Reader)
    images = batches.read(map(request, itertools.count()))
    batches._request_next(0, iter([request(0)]))
    mark(Path(config.folder) / "pids0", {"loader": batches.loader_pid})
    raise ZeroDivisionError(images)


def main(function, folder, *settings):
    from multigpu.launch.launcher import launch

    values = {key: json.loads(value) for key, value in (setting.split("=") for setting in settings)}
    defaults = {"rank": None, "devices": ["cpu"], "folder": folder, "run_name": None}
    defaults |= {"max_restarts": 0, "is_restart": False, "resume_train": None, "output": folder}
    defaults |= {"reading": 0.0, "computing": 0.01, "steps": 10, "between": 0.0}
    config = SimpleNamespace(**defaults | values)
    return abandon(config) if function == "abandon" else launch(config, globals()[function])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
