"""Time of a worker, split as in upstream, per iteration and per timing window of 5,120 images.

    calc   computing the step     sync   waiting for the device and for other workers
    comm   the exchange           wait   waiting for the loader

Source: Theano-MPI's recorder (Ma et al. 2016), which reports seconds per 5,120 images.
"""

import time
from contextlib import contextmanager
from typing import NamedTuple

SECTIONS = ("calc", "sync", "comm", "wait")
TIMES = ("seconds", *SECTIONS)
LAP = 5120                                       # images of all workers together, per timing window


class Lap(NamedTuple):
    """Time of a worker over a timing window: the steps in which all workers together processed at least LAP images.

        iteration, epoch  position at the end of the window
        images            images of all workers in the window
        seconds           total time, without validation and saving
        calc, sync, comm, wait    time of each section, in seconds
    """

    iteration: int
    epoch: float
    images: int
    seconds: float
    calc: float
    sync: float
    comm: float
    wait: float


class Stopwatch:
    """Measures the time of iterations and timing windows.

    Args:
        clock: () -> seconds.
    """

    def __init__(self, clock=time.perf_counter):
        self.clock = clock
        self.lap, self.images, self.ended = dict.fromkeys(TIMES, 0.0), 0, None
        self.restart()

    @contextmanager
    def time(self, section):
        """Count the time spent in the block as `section` of this iteration: calc, sync, comm or wait."""
        start = self.clock()
        if self.began is None:
            self.began = start
        try:
            yield
        finally:
            self.add(section, self.clock() - start)

    def add(self, section, seconds):
        """Count `seconds` measured elsewhere as `section` of this iteration."""
        if section not in SECTIONS:
            raise ValueError(f"a section of an iteration must be one of {', '.join(SECTIONS)}, got {section!r}")
        self.spent[section] += seconds

    @contextmanager
    def paused(self):
        """Exclude the time spent in the block, for example to save, from the iteration times."""
        start, spent = self.clock(), dict(self.spent)
        try:
            yield
        finally:
            self.spent = spent
            if self.began is not None:
                self.began += self.clock() - start

    def restart(self):
        """Let the next iteration begin with the next timed section."""
        self.began, self.spent = None, dict.fromkeys(SECTIONS, 0.0)

    def elapsed(self):
        """Return the seconds since the last iteration or restart."""
        return 0.0 if self.began is None else self.clock() - self.began

    def end_iteration(self, iteration, epoch, images):
        """End the iteration, begin the next one, and return the TIMES of the ended one.

        Args:
            images: images of all workers in this iteration.
        """
        times = {"seconds": self.elapsed(), **self.spent}
        self.restart()
        self.began = self.clock()
        for name, seconds in times.items():
            self.lap[name] += seconds
        self.images += images
        if self.images >= LAP:
            self.ended = Lap(iteration, epoch, self.images, **self.lap)
            self.lap, self.images = dict.fromkeys(TIMES, 0.0), 0
        return times

    def take_lap(self):
        """Return the Lap that ended with the last iteration, once; None if no window has ended.

        With synchronised steps of equal size, the window ends at the same step on every worker.
        """
        ended, self.ended = self.ended, None
        return ended
