"""train.py for the tiny network, whose ranks note their process ids, and raise when told to by a signal.

Run as a script:  drawn_doubles.py key=value ...  It draws no pictures, for a run that saves every few steps would do
little else.
"""

import os
import signal
import sys
from pathlib import Path

import train
from multigpu import worker
from tests import tiny
from tests.multigpu.process_doubles import mark

RAISE = signal.SIGUSR2                           # which no MPI and no part of a run makes use of


def work(config, device, control, partners):
    """multigpu.worker.work; the process id of rank 1 is in the file rank1 of the folder `output`."""
    signal.signal(RAISE, fail)
    mark(Path(config.output) / f"rank{partners.rank}", os.getpid())
    worker.PLOTS = __name__
    tiny.tiny_work(config, device, control, partners)


def fail(number, frame):
    """Whatever the rank does at this moment, it fails there."""
    raise RuntimeError("this moment was drawn")


def learning_curves(folder):
    """No picture."""


def filters(weights, path):
    """No picture."""


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:], "tests.multigpu.drawn_doubles:work"))
