"""Progress on the screen: a bar on a terminal, otherwise a plain line every few seconds."""

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10                                     # interval between two plain lines


class Progress:
    """Counts images and shows the number done, the rate per second and the remaining time.

    A line shows the rate since the previous line, because images completed by an earlier run pass faster than the rest.
    The last line shows the rate of the whole.

    Args:
        stream: where plain lines are printed; None: standard output at the time of writing.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None):
        self.label = label
        self.total = total
        self.stream = stream
        self.done = 0
        self.start = time.monotonic()
        self.shown = self.start                  # time of the last line, and the images done then
        self.shown_done = 0
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=label, unit=" images", unit_scale=True)

    def add(self, images: int) -> None:
        """Count completed images."""
        self.done += images
        if self.bar is not None:
            self.bar.update(images)
        elif images and (self.done == self.total or time.monotonic() - self.shown >= SECONDS):
            now = time.monotonic()
            since, before = (self.start, 0) if self.done == self.total else (self.shown, self.shown_done)
            self.shown = now
            self.shown_done = self.done
            rate = (self.done - before) / max(now - since, 1e-6)
            left = duration((self.total - self.done) / rate)
            line = f"{self.label} {self.done:,} of {self.total:,} images, {rate:.0f} images/s, {left} left"
            print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the bar on the screen and start a new line."""
        if self.bar is not None:
            self.bar.close()


def quantity(n: int, noun: str) -> str:
    """Format a number of things for display: 1 file, 2,000 files."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def duration(seconds: float) -> str:
    """Format seconds for display: 40 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
