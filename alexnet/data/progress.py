"""Progress on the screen: a status line on a terminal, otherwise a plain line every few seconds."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Self, TextIO

from alexnet.native.console import CLEAR_LINE

SECONDS = 10                                     # interval between two plain lines
REDRAW = 0.1                                     # seconds between two drawings of a status line
CELLS = (6, 30)                                  # smallest and largest width of the bar


class StatusLine:
    """One line at the bottom of a terminal: a label, a percentage, a bar, and figures in order of importance.

    Figures that do not fit beside the smallest bar are left out.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._line = ""
        self._label = ""
        self._drawn = 0.0

    def show(self, label: str, share: float | None, figures: Sequence[str] = ()) -> None:
        """Draw the line, at most every REDRAW seconds for each label.

        Args:
            share: the part that is done, 0 to 1; None: unknown.
        """
        now = time.monotonic()
        if label == self._label and share != 1 and now - self._drawn < REDRAW:
            return
        self._line = status_line(label, share, figures, self._columns())
        self._label = label
        self._drawn = now
        self._print(CLEAR_LINE + self._line)

    def write(self, text: str) -> None:
        """Print text above the line."""
        self._print(f"{CLEAR_LINE if self._line else ''}{text}\n{self._line}")

    def close(self) -> None:
        """Erase the line."""
        if self._line:
            self._print(CLEAR_LINE)
        self._line = self._label = ""

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):            # not a real terminal
            return shutil.get_terminal_size().columns


def status_line(label: str, share: float | None, figures: Sequence[str], columns: int) -> str:
    """Return the text of a StatusLine that fits into `columns`, without its last column."""
    text = label if share is None else f"{label} {share:4.0%}"
    smallest, largest = CELLS
    room = columns - 1 - (0 if share is None else smallest + 3)
    for figure in figures:
        if len(text) + 2 + len(figure) > room:
            break
        text += f", {figure}"
    if share is not None and (cells := min(largest, columns - len(text) - 4)) >= smallest:
        filled = int(share * cells)
        text = f"[{'#' * filled}{'.' * (cells - filled)}] {text}"
    return text[: columns - 1]


class Progress:
    """Counts images and shows the number done, the rate per second and the remaining time. A context manager.

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
        self.line = StatusLine(sys.stderr) if sys.stderr.isatty() else None

    def add(self, images: int) -> None:
        """Count completed images."""
        self.done += images
        now = time.monotonic()
        if self.line is not None:
            self.line.show(self.label, self.done / self.total if self.total else 1, self._figures(now))
        elif images and (self.done == self.total or now - self.shown >= SECONDS):
            print(f"{self.label} {', '.join(self._figures(now))}", file=self.stream, flush=True)
        if self.done == self.total or now - self.shown >= SECONDS:
            self.shown = now
            self.shown_done = self.done

    def _figures(self, now: float) -> list[str]:
        whole = self.done == self.total or self.shown_done == 0
        since, before = (self.start, 0) if whole else (self.shown, self.shown_done)
        rate = (self.done - before) / max(now - since, 1e-6)
        left = f"{duration((self.total - self.done) / rate)} left" if rate else "? left"
        return [f"{self.done:,} of {self.total:,} images", f"{rate:.0f} images/s", left]

    def close(self) -> None:
        """Erase the line on a terminal; the command prints its result next."""
        if self.line is not None:
            self.line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def quantity(n: int, noun: str) -> str:
    """Format a number of things for display: 1 file, 2,000 files."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def duration(seconds: float) -> str:
    """Format seconds for display: 40 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
