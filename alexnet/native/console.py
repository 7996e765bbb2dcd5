"""Standard output and error that cannot end a program: a closed pipe, a lost terminal, an encoding without a letter.

Text that cannot be written is dropped, because log.txt holds it too. A character that the encoding lacks is written as
an escape such as \\xd7.
"""

import io
import os
import sys
from typing import Any, TextIO

ESCAPED = "backslashreplace"
CLEAR_LINE = "\r\x1b[K"                          # to the start of the line, and erase it


class TolerantFile(io.FileIO):
    """A file descriptor for writing that drops what cannot be written, for example after `| head` has exited."""

    def write(self, data: Any) -> int:
        """Write bytes; return their number, also if they were dropped."""
        try:
            written = super().write(data)
        except OSError:                          # a closed pipe or terminal, a full disk
            return memoryview(data).nbytes
        return memoryview(data).nbytes if written is None else written         # None: a non-blocking terminal is busy


def protect() -> None:
    """Make sys.stdout and sys.stderr of this process tolerant, and open them if the process was started without.

    A stream that something else has replaced, such as a test, is left unchanged.
    """
    if sys.stdout is sys.__stdout__:
        sys.stdout = tolerant(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = tolerant(sys.stderr, 2)


def escape() -> None:
    """Let sys.stdout and sys.stderr write an escape for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)


def tolerant(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream to `descriptor` that replaces `stream`; None: the process was started with it closed."""
    if stream is None:
        occupy(descriptor)
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    buffer = io.BufferedWriter(TolerantFile(descriptor, "wb", closefd=False))
    lines = stream.isatty() or descriptor == 2
    return io.TextIOWrapper(buffer, stream.encoding, ESCAPED, line_buffering=lines, write_through=descriptor == 2)


def occupy(descriptor: int) -> None:
    """Open /dev/null as `descriptor` if it is closed; otherwise the next file that is opened would receive prints."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)


def say(text: str) -> None:
    """Print a line to standard error, in place of the incomplete line of a progress bar on the terminal."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            stream.write(CLEAR_LINE)
            stream.flush()
    print(text, file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Print a remark to standard error."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def write_now(text: str) -> None:
    """Write a line to standard error without the lock of sys.stderr, which another thread may hold."""
    try:
        os.write(2, f"{text}\n".encode(errors=ESCAPED))
    except OSError:                              # closed, see TolerantFile
        return
