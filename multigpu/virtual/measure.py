"""What a step and an exchange cost on this machine, for the virtual clock.

The step is timed as it is.  An exchange is what ranks on one host pay for it: a copy, through memory that both ends
see, twice in each direction, and the server's update.  Each is the median of some runs, so one disturbance is nothing.
"""

import statistics
import time

import numpy as np

from multigpu.rules.server_updates import plain
from multigpu.virtual.post import Costs


def measured(take_step, length, runs=20):
    """The Costs of this machine.

    take_step  () -> None: a step of a client           length  float32 numbers that are exchanged
    """
    one, other = np.zeros((2, length), np.float32)
    copy = seconds_of(lambda: np.copyto(one, other), runs)
    apply = seconds_of(lambda: plain(one, other, 0.5), runs)
    return Costs(step=seconds_of(take_step, runs), copy=0.0, transfer=2 * copy, apply=apply)


def seconds_of(work, runs):
    """The median of the seconds that `runs` calls take; one more, before them, does not count."""
    work()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
