"""C compiler driver: compiles a kernel file at first use for the processor of this machine, caches and loads it.

Compiled libraries are cached in ALEXNET_CACHE, else XDG_CACHE_HOME/alexnet, else ~/.cache/alexnet. The file name
contains a hash of sources, flags, compiler and processor. A library is written under a temporary name and then renamed,
so several processes can compile the same file concurrently.
"""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path

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
_isa = os.environ.get("ALEXNET_ISA", "auto")
_threads = None
_wanted = {}                                     # (source, name) of requested kernels, in order
_thread_setters = []                             # omp_set_num_threads of each library


class CompileError(RuntimeError):
    """The C compiler failed on a kernel. The message contains the command and the compiler output."""


def use_isa(name):
    """Compile later kernels with the flags ISA_FLAGS[name]; "auto" lets the compiler detect the processor."""
    global _isa
    if name not in ISA_FLAGS:
        raise ValueError(f"isa must be one of {', '.join(ISA_FLAGS)}, got {name!r}")
    _isa = name


def use_threads(n):
    """Run kernels on n threads. None means OMP_NUM_THREADS if set, else one thread per available core."""
    global _threads
    if n is not None and n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    _threads = n
    for set_threads in _thread_setters:
        set_threads(threads())


def threads():
    """Return the number of threads that a kernel runs on."""
    if _threads is not None:
        return _threads
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if first.isdigit() and int(first) > 0:
        return int(first)
    return cores()


def compiler_available():
    """Return True if a C compiler is installed."""
    return compiler() is not None


@cache
def compiler():
    """Return the C compiler command as a list: CC if set, else cc, gcc or clang. Return None if none is found."""
    for name in [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    return None


def library(path):
    """Compile and load a C file; return the ctypes library. Raises CompileError if the compiler fails."""
    return load(source_of(path), path.stem)


@cache
def source_of(path):
    """Return the text of a C file, with #include lines replaced by the headers from the same folder."""
    return INCLUDE.sub(lambda match: source_of(path.with_name(match[1])), path.read_text(encoding="utf-8"))


def request(source, name):
    """Register a kernel that a graph will call, so that precompile() compiles it before the first call."""
    _wanted[source, name] = None


def precompile():
    """Compile and load all requested kernels, threads() of them in parallel."""
    with ThreadPoolExecutor(threads()) as pool:
        for _ in pool.map(lambda wanted: load(*wanted), _wanted):
            pass                                 # iteration raises the first CompileError
    _wanted.clear()
    use_threads(_threads)                        # OpenMP stores the number per calling thread


class Function:
    """A C function as a Python callable. Its source is compiled, or loaded from the cache, at the first call.

    name       prefix of the file name in the cache
    signature  one letter per argument: a = C-contiguous array, n = long, u = uint32, f = float
    can_fail   the function returns an int; a nonzero value raises MemoryError
    """

    def __init__(self, source, name, symbol, signature, can_fail=False):
        self.source, self.name, self.symbol = source, name, symbol
        self.signature, self.can_fail = signature, can_fail
        request(source, name)

    @cached_property
    def call(self):
        call = getattr(load(self.source, self.name), self.symbol)
        call.argtypes = [ARGUMENTS[letter] for letter in self.signature]
        call.restype = _checked_status if self.can_fail else None
        return call

    def __call__(self, *arguments):
        self.call(*arguments)


def function(path, symbol, signature, can_fail=False):
    """Return the Function for a symbol of a C file."""
    return Function(source_of(path), path.stem, symbol, signature, can_fail)


class _Array:
    """ctypes argument type: a C-contiguous array, passed as a pointer."""

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
    """Compile and load C source text; return the ctypes library. name is the prefix of the cached file name."""
    return _load(source, name, _checked_isa())


@cache
def _load(source, name, isa):
    path = _compiled(source, name, tuple(ISA_FLAGS[isa]))
    loaded = ctypes.CDLL(os.fspath(path))
    if hasattr(loaded, "omp_set_num_threads"):
        _thread_setters.append(loaded.omp_set_num_threads)
        loaded.omp_set_num_threads(threads())
    return loaded


def _checked_isa():
    if _isa not in ISA_FLAGS:
        raise ValueError(f"ALEXNET_ISA must be one of {', '.join(ISA_FLAGS)}, got {_isa!r}")
    return _isa


def _compiled(source, name, tile_flags):
    """Return the path of the compiled source. Compile it if it is not in the cache."""
    command = compiler()
    if command is None:
        raise CompileError(NO_COMPILER)
    full = [*command, *FLAGS, *tile_flags, OPENMP]
    parts = [source, *full, _compiler_version(), processor()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    path = cache_folder() / f"{name}-{digest}.so"
    if not path.exists():
        _compile(full, source, path)
    return path


def _compile(command, source, path):
    """Compile source to path, through a temporary folder next to it. If that fails, retry without OpenMP and warn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="compiling-") as folder:
        text, result = Path(folder, "kernel.c"), Path(folder, "kernel.so")
        text.write_text(source)
        command = [*command, os.fspath(text), "-o", os.fspath(result), "-lm"]
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
    """Warn once per process that the compiler does not support OpenMP."""
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


@cache
def _compiler_version():
    return subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout


@cache
def processor():
    """Return what determines -march=native: the name of the processor and its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU ")))
