"""Time limits that count only the time in which this process was not suspended.

A run can be suspended as a whole: by SIGSTOP, by a batch system, in a frozen container or a virtual machine.  When it
continues, each process sees one large gap, in which the others could not do anything either.  A limit counts at most
LONGEST seconds between two looks at the clock, so a process has to look more often than that.  The system time, which
can be set, is never used.
"""

import time
from multiprocessing.connection import Connection

LONGEST = 1.0                                    # seconds
LOOK = 0.25                                      # seconds between two looks


class RunningClock:
    """A clock that counts at most `longest` seconds between two calls of now()."""

    def __init__(self, longest: float = LONGEST) -> None:
        self._longest = longest
        self._now = 0.0
        self._last = time.monotonic()

    def now(self) -> float:
        """Return the seconds since the start."""
        last, self._last = self._last, time.monotonic()
        self._now += min(self._last - last, self._longest)
        return self._now


class TimeLimit:
    """A limit of `seconds` on a RunningClock; see there for `longest`."""

    def __init__(self, seconds: float, longest: float = LONGEST) -> None:
        self._seconds = seconds
        self._clock = RunningClock(longest)

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._seconds - self._clock.now())

    def look(self) -> float:
        """Return the seconds to wait until the next look, 0 if no time is left."""
        return min(LOOK, self.left())


def sleep(seconds: float) -> None:
    """Sleep; time in which this process is suspended does not count."""
    limit = TimeLimit(seconds)
    while pause := limit.look():
        time.sleep(pause)


def poll(pipe: Connection, seconds: float) -> bool:
    """Wait until a message arrives or the other end closes; return whether that happened within `seconds`."""
    limit = TimeLimit(seconds)
    while not pipe.poll(pause := limit.look()):
        if not pause:
            return False
    return True
