"""Time of a worker, split as in upstream, per iteration and per timing window of 5,120 images.

    calc   computing the step     sync   waiting for the device and for other workers
    comm   the exchange           wait   waiting for the loader

The time of an iteration is the sum of these and of small remainders. `hidden` is the time of an exchange during the
computation; it is not part of the sum.

Source: Theano-MPI's recorder (Ma et al. 2016), which reports seconds per 5,120 images.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

SECTIONS = ("calc", "sync", "comm", "wait")
TIMES = ("seconds", *SECTIONS, "hidden")
LAP = 5120                                       # images of all workers together, per timing window


class Lap(NamedTuple):
    """Time of a worker over a timing window: the steps in which all workers together processed at least LAP images.

        iteration, epoch  position at the end of the window
        images            images of all workers in the window
        seconds           total time, without validation and saving
        calc, sync, comm, wait    time of each section, in seconds
        hidden            time of the exchange during calc, in seconds
    """

    iteration: int
    epoch: float
    images: int
    seconds: float
    calc: float
    sync: float
    comm: float
    wait: float
    hidden: float = 0.0


class Stopwatch:
    """Measures the time of iterations and timing windows.

    Args:
        clock: () -> seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.reset()

    def reset(self) -> None:
        """Begin a new iteration and a new timing window."""
        self._lap = dict.fromkeys(TIMES, 0.0)
        self._images = 0                         # in the current timing window
        self._ended: Lap | None = None
        self._began: float | None = None         # the current iteration
        self._spent = dict.fromkeys(TIMES[1:], 0.0)

    @contextmanager
    def time(self, section: str) -> Iterator[None]:
        """Count the time spent in the block as `section` of this iteration: calc, sync, comm or wait."""
        start = self.clock()
        if self._began is None:
            self._began = start
        try:
            yield
        finally:
            self.add(section, self.clock() - start)

    def add(self, section: str, seconds: float) -> None:
        """Count `seconds` measured elsewhere as `section`, or as hidden time, of this iteration.

        Raises:
            ValueError: there is no such section.
        """
        if section not in self._spent:
            raise ValueError(f"a section of an iteration must be one of {', '.join(self._spent)}, got {section!r}")
        self._spent[section] += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in the block, for example to save, from the iteration times."""
        start = self.clock()
        spent = dict(self._spent)
        try:
            yield
        finally:
            self._spent = spent
            if self._began is not None:
                self._began += self.clock() - start

    def restart(self) -> None:
        """Let the next iteration begin with the next timed section."""
        self._began = None
        self._spent = dict.fromkeys(TIMES[1:], 0.0)

    def elapsed(self) -> float:
        """Return the seconds since the last iteration or restart."""
        return 0.0 if self._began is None else self.clock() - self._began

    def end_iteration(self, iteration: int, epoch: float, images: int) -> dict[str, float]:
        """End the iteration, begin the next one, and return the TIMES of the ended one.

        Args:
            images: images of all workers in this iteration.
        """
        times = {"seconds": self.elapsed(), **self._spent}
        self.restart()
        self._began = self.clock()
        for name, seconds in times.items():
            self._lap[name] += seconds
        self._images += images
        if self._images >= LAP:
            self._ended = Lap(iteration, epoch, self._images, **self._lap)
            self._lap = dict.fromkeys(TIMES, 0.0)
            self._images = 0
        return times

    def take_lap(self) -> Lap | None:
        """Return the Lap that ended with the last iteration, once; None if no window has ended.

        With synchronised steps of equal size, the window ends at the same step on every worker.
        """
        ended, self._ended = self._ended, None
        return ended
