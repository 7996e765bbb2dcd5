"""Measures the costs of a step and of an exchange on this machine, for the virtual clock.

The step is timed directly.  The cost of an exchange is that of ranks on one host: two copies through shared memory in
each direction, and the server's update.  Each value is the median of several runs, so that one disturbance has no
effect.
"""

import statistics
import time

import numpy as np

from experiments.asgd.channel import Costs
from multigpu.rules.parameter_server.updates import plain


def measured(take_step, length, runs=20):
    """Return the Costs of this machine.

    Args:
        take_step: () -> None: one step of a client.
        length: number of float32 values exchanged.
        runs: calls per measurement.
    """
    one, other = np.zeros((2, length), np.float32)
    copy = seconds_of(lambda: np.copyto(one, other), runs)
    apply = seconds_of(lambda: plain(one, other, 0.5), runs)
    return Costs(step=seconds_of(take_step, runs), copy=0.0, transfer=2 * copy, apply=apply)


def seconds_of(work, runs):
    """Return the median duration of `runs` calls, in seconds; one warm-up call is not counted."""
    work()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
