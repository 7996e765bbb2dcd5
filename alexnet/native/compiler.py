"""C compiler driver: compiles C source at first use for the processor of this machine, caches and loads it.

Compiled libraries are cached in the folder of the environment variable ALEXNET_CACHE, else XDG_CACHE_HOME/alexnet, else
~/.cache/alexnet. If this folder cannot be written, or others may write to it, a private folder below TMPDIR is used,
and a warning names both: a library is code, so another user must not be able to place one. The file name contains a
hash of sources, flags, compiler and processor. A library is written atomically, so several processes can compile the
same file concurrently. A damaged one is compiled again.

    scale = compiler.function(Path("scale.c"), "scale", "aanf")      # or C source text, with name="scale"
    scale(x, y, x.size, 2.0)                                         # void scale(const float *, float *, long, float)
"""

import ctypes
import errno
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from alexnet.native import atomic
from alexnet.native.cores import cores

INCLUDE = re.compile(r'^#include "(\w+\.h)"\n', re.MULTILINE)
ISA_FLAGS = {                                    # setting -> flags that select instructions and register tiles
    "auto": ["-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-DTILE_AVX512"],
    "avx2": ["-mavx2", "-mfma", "-DTILE_AVX2"],
    "neon": ["-DTILE_NEON"],
    "portable": ["-DTILE_PORTABLE"],
}
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]     # NaN stays NaN
OPENMP = "-fopenmp"
NO_COMPILER = (
    "no C compiler was found, so everything runs on slow NumPy references: install gcc "
    "(Debian: apt install gcc libc6-dev; conda: conda install gcc) or name a compiler in the environment variable CC"
)


class CacheError(OSError):
    """No folder for compiled kernels can be written. The message names the folders and the remedy."""


class CompileError(RuntimeError):
    """The C compiler failed on a kernel. The message contains the command and the compiler output."""


@dataclass
class State:
    """What this process has set, requested and loaded.

    isa             key of ISA_FLAGS
    threads         number of threads of a kernel; None: the default
    requested       (source, name) of the kernels to compile in precompile(), in order
    thread_setters  omp_set_num_threads of each loaded library
    """

    isa: str = os.environ.get("ALEXNET_ISA", "auto")
    threads: int | None = None
    requested: dict[tuple[str, str], None] = field(default_factory=dict)
    thread_setters: list[Callable[[int], None]] = field(default_factory=list)


state = State()


def use_isa(name: str) -> None:
    """Compile later kernels with the flags ISA_FLAGS[name]; "auto" lets the compiler detect the processor."""
    if name not in ISA_FLAGS:
        raise ValueError(f"isa must be one of {', '.join(ISA_FLAGS)}, got {name!r}")
    state.isa = name


def use_threads(n: int | None) -> None:
    """Run kernels on n threads. None means OMP_NUM_THREADS if set, else one thread per available core."""
    if n is not None and n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    state.threads = n
    for set_threads in state.thread_setters:
        set_threads(threads())


def threads() -> int:
    """Return the number of threads that a kernel runs on."""
    if state.threads is not None:
        return state.threads
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if first.isdigit() and int(first) > 0:
        return int(first)
    return cores()


def compiler_available() -> bool:
    """Return True if a C compiler is installed."""
    return compiler() is not None


@cache
def compiler() -> list[str] | None:
    """Return the C compiler command: CC if set, else cc, gcc or clang. Return None if none is found."""
    for name in [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    return None


def load(source: str | Path, name: str | None = None, dtype: str = "float32") -> ctypes.CDLL:
    """Compile and load C source; return the ctypes library.

    Args:
        source: path of a C file, or C source text.
        name: prefix of the file name in the cache; for a path, its stem is the default.
        dtype: "float32" or "float64"; for the latter, REAL is defined as double.

    Raises:
        CompileError: there is no compiler, or it failed.
    """
    if state.isa not in ISA_FLAGS:
        raise ValueError(f"ALEXNET_ISA must be one of {', '.join(ISA_FLAGS)}, got {state.isa!r}")
    return _load(*_text_and_name(source, name, dtype), state.isa)


def request(source: str | Path, name: str | None = None, dtype: str = "float32") -> None:
    """Register source that a graph will call, so that precompile() compiles it before the first call. See load()."""
    state.requested[_text_and_name(source, name, dtype)] = None


def precompile() -> None:
    """Compile and load all requested kernels, threads() of them in parallel."""
    with ThreadPoolExecutor(threads()) as pool:
        for _ in pool.map(lambda request: load(*request), state.requested):
            pass                                 # iteration raises the first CompileError
    state.requested.clear()
    use_threads(state.threads)                   # OpenMP stores the number per calling thread


class Function:
    """A C function as a Python callable. Its source is compiled, or loaded from the cache, at the first call."""

    def __init__(self, source: str, name: str, symbol: str, signature: str, can_fail: bool, dtype: str) -> None:
        self.source = source
        self.name = name
        self.symbol = symbol
        self.arguments = [REALS[dtype] if letter == "r" else ARGUMENTS[letter] for letter in signature]
        self.can_fail = can_fail

    @cached_property
    def call(self) -> Callable[..., object]:
        """The ctypes function, with its argument types set."""
        call = getattr(load(self.source, self.name), self.symbol)
        call.argtypes = self.arguments
        call.restype = _checked_status if self.can_fail else None
        return call

    def __call__(self, *arguments: object) -> None:
        self.call(*arguments)


def function(
    source: str | Path,
    symbol: str,
    signature: str,
    can_fail: bool = False,
    name: str | None = None,
    dtype: str = "float32",
) -> Function:
    """Request compilation of C source, and return one of its functions.

    Args:
        source, name, dtype: see load().
        symbol: name of the C function.
        signature: one letter per argument: a = C-contiguous array, n = long, u = uint32_t, f = float, d = double,
            r = REAL.
        can_fail: the function returns an int, and a nonzero value raises MemoryError. Otherwise it returns void.
    """
    request(source, name, dtype)
    return Function(*_text_and_name(source, name, dtype), symbol, signature, can_fail, dtype)


class _Array:
    """ctypes argument type: a C-contiguous array, passed as a pointer."""

    @classmethod
    def from_param(cls, array: np.ndarray) -> ctypes.c_void_p:
        if not array.flags.c_contiguous:
            raise ValueError(f"a kernel needs a C-contiguous array, got strides {array.strides} for {array.shape}")
        return ctypes.c_void_p(array.ctypes.data)


ARGUMENTS = {"a": _Array, "n": ctypes.c_long, "u": ctypes.c_uint32, "f": ctypes.c_float, "d": ctypes.c_double}
REALS = {"float32": ctypes.c_float, "float64": ctypes.c_double}


def _checked_status(status: int) -> None:
    if status:
        raise MemoryError("a kernel could not allocate its working memory: use a smaller batch or fewer threads")


def _text_and_name(source: str | Path, name: str | None, dtype: str) -> tuple[str, str]:
    if isinstance(source, Path):
        name = name or source.stem
        source = expanded(source)
    if name is None:
        raise TypeError("C source text needs a name, the prefix of its file in the cache; only a path has one")
    return (source, name) if dtype == "float32" else ("#define REAL double\n" + source, f"{name}-{dtype}")


@cache
def expanded(path: Path) -> str:
    """Return the text of a C file, with #include lines replaced by the headers from the same folder."""
    return INCLUDE.sub(lambda match: expanded(path.with_name(match[1])), path.read_text(encoding="utf-8"))


@cache
def _load(source: str, name: str, isa: str) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(os.fspath(_compiled(source, name, isa, cache_folder())))
    except OSError as error:                     # it cannot be written, or does not admit programs (noexec)
        try:
            loaded = ctypes.CDLL(os.fspath(_compiled(source, name, isa, fallback_folder(error))))
        except OSError as second:
            raise unusable_caches(second) from second
    if hasattr(loaded, "omp_set_num_threads"):
        state.thread_setters.append(loaded.omp_set_num_threads)
        loaded.omp_set_num_threads(threads())
    return loaded


def _compiled(source: str, name: str, isa: str, folder: Path) -> Path:
    """Return the path of the compiled source in a folder. Compile it if it is missing or damaged.

    Raises:
        OSError: the library cannot be written there, or others may write there: see private().
        CompileError: there is no compiler, or it failed.
    """
    base = compiler()
    if base is None:
        raise CompileError(NO_COMPILER)
    command = [*base, *FLAGS, *ISA_FLAGS[isa], OPENMP]
    parts = [source, *command, _compiler_version(*base), processor()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    path = private(folder) / f"{name}-{digest}.so"
    if not is_whole(path):
        _compile(command, source, path)
    return path


def _compile(command: list[str], source: str, path: Path) -> None:
    """Compile source to path. If the compiler fails, retry without OpenMP and warn."""
    with atomic.replacing(path, unique=True) as library:
        text = library.with_suffix(".c")
        text.write_text(source, encoding="utf-8")
        command = [*command, os.fspath(text), "-o", os.fspath(library), "-lm"]
        done = _run(command, library.parent)
        if done.returncode:
            command.remove(OPENMP)
            done = _run(command, library.parent)
            if done.returncode:
                output = f"{shlex.join(command)}\n{done.stderr.strip()}"
                raise CompileError(f"the C compiler failed on {path.name}: {output}")
            _warn_no_openmp()
        seal(library)


def _run(command: list[str], temporary: Path) -> "subprocess.CompletedProcess[str]":
    """Run the compiler with its intermediate files in the folder `temporary`.

    Raises:
        OSError: the disk of this folder is full.
    """
    environment = os.environ | {"TMPDIR": os.fspath(temporary), "LC_ALL": "C"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(number) in done.stderr:
                raise OSError(number, os.strerror(number), os.fspath(temporary.parent))
    return done


@cache
def _warn_no_openmp() -> None:
    """Warn once per process that the compiler does not support OpenMP."""
    warnings.warn(
        f"{shlex.join(compiler() or [])} does not support {OPENMP}, so kernels run on one thread: "
        "install its OpenMP library",
        RuntimeWarning,
        stacklevel=2,
    )


def cache_folder() -> Path:
    """Return the folder of compiled kernels."""
    if folder := os.environ.get("ALEXNET_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    home = os.path.expanduser("~").replace("~", "/")         # ~ remains for a user without HOME and without a name
    return (Path(base) if base else Path(home, ".cache")) / "alexnet"


def private(folder: Path) -> Path:
    """Create the folder for this user only, if it is missing, and return its path without links.

    Raises:
        OSError: it cannot be created, or another user could place a library there: one that owns the folder or may
            write to it, or that could replace it or a folder above it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    trusted = {0, os.getuid(), os.stat("/").st_uid}
    for place in (folder, *folder.parents):
        found = place.stat()
        if found.st_uid not in trusted:
            reason = f"{place} belongs to user {found.st_uid}, who could place a library there"
            raise PermissionError(errno.EPERM, reason, str(place))
        if found.st_mode & 0o022 and (place == folder or not found.st_mode & stat.S_ISVTX):
            raise PermissionError(errno.EPERM, f"others may write to it: chmod go-w {place}", str(place))
    return folder


@cache
def warn_of_fallback(error: str) -> None:
    """Warn once per process and reason."""
    warnings.warn(
        f"compiled kernels cannot be cached in {cache_folder()} ({error}), so a folder below {tempfile.gettempdir()} "
        "is used: set ALEXNET_CACHE to a folder of your own that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


def fallback_folder(error: OSError) -> Path:
    """Return a folder below TMPDIR that only this user can write, and warn that it is used because of `error`.

    It has the same name in each process, unless another user has taken this name.

    Raises:
        OSError: it cannot be created.
    """
    warn_of_fallback(error.strerror or str(error))
    name = f"alexnet-{os.getuid()}"
    folder = Path(tempfile.gettempdir(), name)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            raise FileExistsError(errno.EEXIST, "it is a link", str(folder))
        return private(folder)
    except OSError:
        return Path(temporary_folder(name).name)


@cache
def temporary_folder(name: str) -> "tempfile.TemporaryDirectory[str]":
    """Return a new folder below TMPDIR, with the same name at each call; this process removes it when it ends."""
    return tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True)


def unusable_caches(error: OSError) -> CacheError:
    """Return the error for a cache and a fallback that cannot be written; `error` is that of the fallback."""
    return CacheError(
        f"compiled kernels can be stored neither in {cache_folder()} nor below TMPDIR ({atomic.reason(error)}): set "
        "ALEXNET_CACHE to a folder that can be written"
    )


def seal(library: Path) -> None:
    """Append the CRC-32 of a library to its file; the dynamic linker ignores it."""
    with library.open("ab") as file:
        file.write(zlib.crc32(library.read_bytes()).to_bytes(4))


def is_whole(library: Path) -> bool:
    """Return whether a library is as it was sealed. Calling one that is cut off would kill the process."""
    try:
        content = library.read_bytes()
    except OSError:                              # missing, or its folder is not accessible
        return False
    return len(content) > 4 and zlib.crc32(content[:-4]) == int.from_bytes(content[-4:])


@cache
def _compiler_version(*command: str) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, encoding="utf-8", errors="replace")
    return done.stdout


@cache
def processor() -> str:
    """Return what determines -march=native: the name of the processor and its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU ")))
