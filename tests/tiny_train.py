"""train.py for the tiny network of tests/tiny.py, which is imported only by the workers.

The processes that it starts import this file, so it imports nothing that they may not need, as train.py.
"""

import os
import sys
import time
from pathlib import Path


def work(*arguments):
    """Run a worker."""
    from alexnet.run import checkpoint
    from multigpu import loader
    from tests.tiny import tiny_work

    for name in ("STALLED", "PATIENCE"):         # seconds, for tests that do not wait as long as a user
        setattr(loader, name, float(os.environ.get(name, getattr(loader, name))))
    seconds = float(os.environ.get("SLOW_SAVE", 0))
    save = checkpoint.save

    def slow_save(*arguments):
        time.sleep(seconds)
        save(*arguments)

    checkpoint.save = slow_save
    if "FLIP" in os.environ:
        rank, step, mark = os.environ["FLIP"].split(",")
        flip_bit(int(rank), int(step), Path(mark))
    tiny_work(*arguments)


def flip_bit(rank, step, mark):
    """Flip a bit of a weight of worker `rank` before this step, once; it then creates the file `mark`."""
    import numpy as np

    from multigpu.rules import gradients

    compute = gradients.GradientBsp.step

    def flip_and_compute(self, *inputs, rate):
        if self._comm.rank == rank and self._network.step.get_value() == step - 1 and not mark.exists():
            mark.touch()
            self._network.weights[0].get_value(borrow=True).reshape(-1).view(np.uint32)[0] ^= 1 << 20
        return compute(self, *inputs, rate=rate)

    gradients.GradientBsp.step = flip_and_compute


if __name__ == "__main__":
    from multigpu.train import main

    sys.exit(main(sys.argv[1:], work))
