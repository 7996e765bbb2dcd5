"""Where a worker's time goes, split as upstream splits it, per iteration and per lap of 5,120 images.

    calc   the step          sync   waiting: for the device, and for other workers
    comm   the exchange      wait   for the loader

Source: Theano-MPI's recorder (Ma et al. 2016), which reports seconds per 5,120 images.
"""

import time
from contextlib import contextmanager
from typing import NamedTuple

SECTIONS = ("calc", "sync", "comm", "wait")
TIMES = ("seconds", *SECTIONS)
LAP = 5120                                       # images, of all workers together


class Lap(NamedTuple):
    """Where a worker's time went over a lap: the steps in which all workers together took LAP images, or just more.

    iteration, epoch  at its end      images  of all workers in it
    seconds           of the lap, and of each section of it; validation and saving in between do not count
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
    """Measures iterations and laps.

    clock  () -> seconds
    """

    def __init__(self, clock=time.perf_counter):
        self.clock = clock
        self.lap, self.images, self.ended = dict.fromkeys(TIMES, 0.0), 0, None
        self.restart()

    @contextmanager
    def time(self, section):
        """Time spent in the block counts as `section` of this iteration: calc, sync, comm or wait."""
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
        """Time spent in the block, saving for example, counts as no iteration's."""
        start, spent = self.clock(), dict(self.spent)
        try:
            yield
        finally:
            self.spent = spent
            if self.began is not None:
                self.began += self.clock() - start

    def restart(self):
        """The next iteration begins with the next timed section."""
        self.began, self.spent = None, dict.fromkeys(SECTIONS, 0.0)

    def elapsed(self):
        """Seconds since the last iteration or the restart."""
        return 0.0 if self.began is None else self.clock() - self.began

    def end_iteration(self, iteration, epoch, images):
        """The TIMES of the iteration that ends here; the next one begins.

        images  of all workers
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
        """The Lap that has ended with the last iteration, once; None within one.

        It ends at every worker with the same step where all take steps of the same size together.
        """
        ended, self.ended = self.ended, None
        return ended
