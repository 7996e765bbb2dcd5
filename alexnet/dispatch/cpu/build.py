"""Find the C compiler, compile a kernel file at first use for this machine's processor, keep the result, load it.

A compiled library is kept in a folder of the user (ALEXNET_CACHE, else XDG_CACHE_HOME/alexnet, else ~/.cache/alexnet)
under a hash of all that went into it: sources, flags, compiler, processor.  It is written under another name and
renamed, so any number of processes may compile the same file at once.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path

from alexnet.cores import cores

SOURCES = Path(__file__).parent
TILES = {                                        # setting: flags that choose instructions and register tiles
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
_tiles = os.environ.get("ALEXNET_TILES", "auto")
_threads = None
_wanted = {}                                     # (source, name) of kernels, in order
_thread_setters = []                             # omp_set_num_threads, as each library sees it


class CompileError(RuntimeError):
    """The C compiler refused a kernel; the message holds the command and what it said."""


def use_tiles(name):
    """Compile kernels from now on for the tiles of TILES[name]; "auto" asks the compiler for this processor's."""
    global _tiles
    if name not in TILES:
        raise ValueError(f"tiles must be one of {', '.join(TILES)}, got {name!r}")
    _tiles = name


def use_threads(n):
    """Run kernels on n threads; None: on the cores this process may use, or OMP_NUM_THREADS where it is set."""
    global _threads
    if n is not None and n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    _threads = n
    for set_threads in _thread_setters:
        set_threads(threads())


def threads():
    """Return how many threads a kernel runs on."""
    if _threads is not None:
        return _threads
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if first.isdigit() and int(first) > 0:
        return int(first)
    return cores()


def compiler_available():
    """Whether kernels can be compiled on this machine."""
    return compiler() is not None


@cache
def compiler():
    """Return the command of the C compiler as a list: CC where it is set, else cc, gcc or clang; None without one."""
    for name in [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    return None


def library(name):
    """Return the ctypes library made of the file name.c beside this one; raises CompileError if that fails."""
    return load(source_of(name), name)


def source_of(name):
    return (SOURCES / f"{name}.c").read_text()


def want(source, name):
    """Note that a graph will call this kernel, so that compile_wanted has it ready before the first call."""
    _wanted[source, name] = None


def compile_wanted():
    """Compile and load every kernel that graphs have asked for, as many side by side as there are threads."""
    with ThreadPoolExecutor(threads()) as pool:
        for _ in pool.map(lambda wanted: load(*wanted), _wanted):
            pass                                 # the first CompileError is raised here
    _wanted.clear()
    use_threads(_threads)                        # OpenMP keeps the number for each thread that calls it


class Function:
    """A C function as a Python callable; its source is compiled, or loaded, when it is first called.

    name       tells files in the cache apart
    signature  one letter per argument: a = C-contiguous array, n = long, u = uint32, f = float
    can_fail   the function returns an int, and anything but 0 raises MemoryError
    """

    def __init__(self, source, name, symbol, signature, can_fail=False):
        self.source, self.name, self.symbol = source, name, symbol
        self.signature, self.can_fail = signature, can_fail
        want(source, name)

    @cached_property
    def call(self):
        call = getattr(load(self.source, self.name), self.symbol)
        call.argtypes = [ARGUMENTS[letter] for letter in self.signature]
        call.restype = _checked_status if self.can_fail else None
        return call

    def __call__(self, *arguments):
        self.call(*arguments)


def function(name, symbol, signature, can_fail=False):
    """Return the Function of that symbol in the file name.c beside this one."""
    return Function(source_of(name), name, symbol, signature, can_fail)


class _Array:
    """A C-contiguous array as a pointer argument."""

    @classmethod
    def from_param(cls, array):
        if not array.flags.c_contiguous:
            raise ValueError(f"a kernel needs a C-contiguous array, got strides {array.strides} for {array.shape}")
        return ctypes.c_void_p(array.ctypes.data)


ARGUMENTS = {"a": _Array, "n": ctypes.c_long, "u": ctypes.c_uint32, "f": ctypes.c_float}


def _checked_status(status):
    if status:
        raise MemoryError("a kernel could not allocate its working memory")


def load(source, name):
    """Return the ctypes library made of C source text; name only helps to tell cached files apart."""
    return _load(source, name, _checked_tiles())


@cache
def _load(source, name, tiles):
    path = _compiled(source, name, tuple(TILES[tiles]))
    loaded = ctypes.CDLL(os.fspath(path))
    if hasattr(loaded, "omp_set_num_threads"):
        _thread_setters.append(loaded.omp_set_num_threads)
        loaded.omp_set_num_threads(threads())
    return loaded


def _checked_tiles():
    if _tiles not in TILES:
        raise ValueError(f"ALEXNET_TILES must be one of {', '.join(TILES)}, got {_tiles!r}")
    return _tiles


def _compiled(source, name, tile_flags):
    """Return the path of the compiled source, compiling it unless the cache holds it."""
    command = compiler()
    if command is None:
        raise CompileError(NO_COMPILER)
    full = [*command, *FLAGS, *tile_flags, OPENMP]
    parts = [source, *_headers(source), *full, _compiler_version(), processor()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    path = cache_folder() / f"{name}-{digest}.so"
    if not path.exists():
        _compile(full, source, path)
    return path


def _compile(command, source, path):
    """Compile source into path by way of a temporary folder beside it; without OpenMP, and a warning, if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="compiling-") as folder:
        text, result = Path(folder, "kernel.c"), Path(folder, "kernel.so")
        text.write_text(source)
        command = [*command, f"-I{SOURCES}", os.fspath(text), "-o", os.fspath(result), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            command.remove(OPENMP)
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = f"{shlex.join(command)}\n{done.stderr.strip()}"
                raise CompileError(f"the C compiler failed on {path.name}: {said}")
            _warn_of_one_thread()
        os.replace(result, path)


@cache
def _warn_of_one_thread():
    """Say once per process that the compiler has no OpenMP."""
    warnings.warn(
        f"{shlex.join(compiler())} does not support {OPENMP}, so kernels run on one thread: install its OpenMP library",
        RuntimeWarning,
        stacklevel=2,
    )


def cache_folder():
    """Return the folder of compiled kernels."""
    if folder := os.environ.get("ALEXNET_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "alexnet"


def _headers(source):
    """The text of each header beside this file that the source names."""
    return [path.read_text() for path in sorted(SOURCES.glob("*.h")) if path.name in source]


@cache
def _compiler_version():
    return subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout


@cache
def processor():
    """What -march=native looks at: the processor's name and its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU ")))
