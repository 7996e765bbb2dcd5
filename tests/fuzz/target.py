"""Fuzzing a reader: a target, and what must hold when it reads any bytes.

The reader returns the same result twice, or raises one of its documented errors, whose message is one line of printable
text of bounded length. It starts no program, imports no code that the input names, writes no file, reads none outside
the folder of the input, and takes at most 4 n + 256 MiB of memory for an input of n bytes.
"""

import os
import resource
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from random import Random

import numpy as np

HOLE = b"<zeros>"                       # an input that ends with this is followed by Target.hole zeros
LONGEST_MESSAGE = 1500                  # characters
MEMORY = 256 << 20                      # bytes that a reader may take besides four times its input
MOST_DIGESTED = 1 << 24                 # bytes of an array that are compared
CODE = ("alexnet", "encodings", "numpy", "onnx", "PIL", "preprocess", "scipy")     # packages that readers may import
# of Python, of packages, and of this repository: modules that are imported
INSTALLED = (sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]))
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (                           # starts of the names of audit events
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename",
    "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.kill", "os.putenv", "os.unsetenv",
    "subprocess.", "pty.", "socket.", "urllib.", "webbrowser.", "pickle.", "shutil.", "tempfile.", "ctypes.dlopen",
)


class Violation(AssertionError):
    """Reading an input breaks a rule of this module. The cause is the unexpected exception, if there is one."""


class ForbiddenAction(BaseException):
    """A reader runs code, or writes a file. Not an Exception, so that no reader catches it."""


def unchanged(data: bytes) -> bytes:
    """Return the data."""
    return data


def nothing(folder: Path) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Target:
    """A reader of foreign bytes.

    file       path of the input relative to the folder of the target; readers may consider its suffix
    read       path -> result
    refusals   exceptions that the reader documents
    seeds      returns valid and invalid small inputs
    modules    names of the modules whose lines are measured, perhaps with some of their functions: module:name,name
    prepare    writes the other files that the reader needs into the folder
    structure  changes an input within its format: (input, random numbers) -> input
    repair     corrects the checksums of an input
    hole       zeros that follow an input with the ending HOLE, for formats with large arrays
    writes     whether the reader may change its file
    mutations  number of mutated inputs in make test
    longest    bytes of an input; short inputs are read faster
    """

    file: str
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]
    modules: tuple[str, ...]
    prepare: Callable[[Path], None] = nothing
    structure: Callable[[bytes, Random], bytes] | None = None
    repair: Callable[[bytes], bytes] = unchanged
    hole: int = 0
    writes: bool = False
    mutations: int = 200
    longest: int = 4096


class Guard:
    """Audit hook that refuses what no reader may do, while it is active. A hook cannot be removed.

    Files that libraries written in C open have no audit event.
    """

    def __init__(self) -> None:
        self.active = False
        self.writable = ""              # path that may be opened for writing
        self.readable = INSTALLED       # folders whose files may be opened for reading
        self.refused: str | None = None
        self.installed = False

    def install(self) -> None:
        """Install the hook, once in a process."""
        if not self.installed:
            self.installed = True
            sys.dont_write_bytecode = True       # of a module that a reader imports for its message
            sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if self.active and self.is_forbidden(event, arguments):
            self.active = False         # the message and the caller may open files
            self.refused = f"{event} {arguments!r}"[:300]
            raise ForbiddenAction(self.refused)

    def is_forbidden(self, event: str, arguments: tuple) -> bool:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or os.fsdecode(path) == self.writable:
                return False
            return bool(flags & WRITING) or not os.path.abspath(os.fsdecode(path)).startswith(self.readable)
        if event == "import":
            return arguments[0].partition(".")[0] not in CODE
        if event == "exec":
            code = arguments[0]         # of a module that is imported: see the event import
            return code.co_name != "<module>" or not os.path.isfile(code.co_filename)
        if event == "os.mkdir" and self.writable:
            return Path(arguments[0]) not in Path(self.writable).parents
        return event.startswith(FORBIDDEN)


GUARD = Guard()


class Runner:
    """Gives inputs to the reader of a target, in a folder that it may use.

    executions  inputs so far
    peak        largest memory that reading an input has taken, in bytes
    """

    def __init__(self, target: Target, folder: Path):
        self.target = target
        self.path = folder / target.file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        target.prepare(folder)
        # kept open: a file system may write a file to the disk if it is emptied, closed and opened
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.folders = [folder, *(place for place in folder.rglob("*") if place.is_dir())]
        self.listing = self.listed()
        self.executions = 0
        self.peak = 0
        self.memory = os.open("/proc/self/clear_refs", os.O_WRONLY)
        GUARD.install()

    def close(self) -> None:
        """Close the files."""
        os.close(self.file)
        os.close(self.memory)

    def warm_up(self) -> None:
        """Read the seeds without the guard, so that libraries import what they need for valid files."""
        for seed in self.target.seeds():
            self.fill(seed)
            with suppress(*self.target.refusals):
                self.target.read(self.path)

    def run(self, data: bytes) -> bool:
        """Read an input and return whether the reader accepts it. Raises Violation."""
        self.executions += 1
        accepted, result = self.once(data)
        if accepted or zlib.crc32(data) % 8 == 0:
            again = self.once(data)
            if again != (accepted, result):
                raise Violation(f"the second reading gives {again}, the first gave {result}"[:1000])
        return accepted

    def once(self, data: bytes) -> tuple[bool, object]:
        """Return (whether the reader accepts an input, its result or its message)."""
        size = self.fill(data)
        before = self.state()
        os.write(self.memory, b"5")     # sets the peak of the memory to its present size
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        GUARD.refused = None
        GUARD.readable = (*INSTALLED, str(self.folders[0]))
        GUARD.writable = str(self.path) if self.target.writes else ""
        GUARD.active = True
        try:
            outcome = True, digest(self.target.read(self.path))
        except KeyboardInterrupt:
            raise
        except self.target.refusals as error:
            GUARD.active = False
            outcome = False, checked_message(error)
        except BaseException as error:
            GUARD.active = False
            raise Violation(f"{type(error).__name__}: {error}"[:1000]) from error
        finally:
            GUARD.active = False
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - taken) * 1024
        self.peak = max(self.peak, taken)
        if GUARD.refused:
            raise Violation(GUARD.refused)
        if taken > 4 * size + MEMORY:
            raise Violation(f"reading {size:,} bytes takes {taken:,} bytes of memory")
        if not self.target.writes and self.state() != before:
            raise Violation("the reader has changed its file")
        if self.listed() != self.listing:
            raise Violation(f"the reader has changed the files: {self.listed()}")
        return outcome

    def fill(self, data: bytes) -> int:
        """Write an input into its file; return the file's size."""
        size = len(data)
        if self.target.hole and data.endswith(HOLE):
            data = data.removesuffix(HOLE)
            size = len(data) + self.target.hole
        os.pwrite(self.file, data, 0)
        os.ftruncate(self.file, len(data))
        os.ftruncate(self.file, size)
        return size

    def state(self) -> tuple[int, int]:
        """Return size and time of the last change of the file."""
        found = os.fstat(self.file)
        return found.st_size, found.st_mtime_ns

    def listed(self) -> list[list[str]]:
        """Return the names in each folder."""
        return [sorted(os.listdir(folder)) for folder in self.folders]


def checked_message(error: Exception) -> str:
    """Return type and message of a documented error. Raises Violation unless it is one line, printable and short."""
    message = str(error)
    if not message.isprintable():
        raise Violation(f"{type(error).__name__} has a message that is not printable: {message!r}"[:500]) from error
    if not 0 < len(message) <= LONGEST_MESSAGE:
        raise Violation(
            f"{type(error).__name__} has a message of {len(message)} characters: {message[:200]}"
        ) from error
    return f"{type(error).__name__}: {message}"


def digest(value: object) -> object:
    """Return a result as nested tuples of plain values that can be compared, NaN included."""
    if isinstance(value, np.ndarray):
        content = zlib.crc32(np.ascontiguousarray(value)) if value.nbytes <= MOST_DIGESTED and value.size else 0
        return value.dtype.str, value.shape, content
    if isinstance(value, Mapping):
        return tuple((digest(key), digest(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(digest, value))
    if is_dataclass(value) and not isinstance(value, type):
        return digest(vars(value))
    return repr(value)
