"""train.py for the tiny network; its ranks write their process ids and raise an exception on a signal.

Run as a script:  raising_ranks.py key=value ...
"""

import os
import signal
import sys
from pathlib import Path

from multigpu import train
from tests import tiny
from tests.multigpu.fakes.workers import mark

RAISE = signal.SIGUSR2                           # a signal that neither MPI nor the run uses


def work(config, device, control, comm):
    """multigpu.worker.work; writes the process id of rank R to the file rankR in the folder `output`."""
    signal.signal(RAISE, fail)
    mark(Path(config.output) / f"rank{comm.rank}", os.getpid())
    tiny.tiny_work(config, device, control, comm)


def fail(number, frame):
    """Signal handler: raise wherever the rank is executing."""
    raise RuntimeError("this moment was drawn")


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:], work))
