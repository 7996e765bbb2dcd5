"""Build the emulated driver and the real PyCUDA for it: python -m tests.cuda_emulator.build

The first build takes half a minute. Both results are cached in Path(sys.prefix) / "cuda_emulator", under names that
contain a hash of all inputs. If something is missing, the program prints the reason and exits with status 0; tests
that need the emulator are then skipped with that reason.

pip downloads the source distribution of PyCUDA. It is compiled here because its setup.py takes two minutes. This build
omits optimisation, compiles the 28 files of Boost.Python as one, and compiles the rest in parallel.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tests.cuda_emulator import CACHE, REASON, Emulator, NotBuilt

REQUIREMENTS = [
    line for line in Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
PYCUDA = next(line.removeprefix("pycuda==") for line in REQUIREMENTS if line.startswith("pycuda=="))
HEADERS = [line for line in REQUIREMENTS if line.startswith("nvidia-")]
CUDA = HEADERS[0].partition("==")[2].removesuffix(".*")          # version of the headers
IMPORTED = [line for line in REQUIREMENTS if "==" not in line]   # by PyCUDA, directly or not; module and package name

FLAGS = ["-std=gnu11", "-O2", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
PYCUDA_FLAGS = [
    "-O0", "-g0", "-w", "-fPIC", "-pthread",
    "-Isrc/cpp", "-Ibpl-subset/bpl_subset", "-DBOOST_PYTHON_SOURCE=1", "-DBOOST_ALL_NO_LIB=1",
    "-DBOOST_THREAD_BUILD_DLL=1", "-DBOOST_THREAD_DONT_USE_CHRONO=1", "-DBOOST_MULTI_INDEX_DISABLE_SERIALIZATION=1",
    "-DPYGPU_PACKAGE=pycuda", "-DPYGPU_PYCUDA=1",
]
BOOST = "bpl-subset/bpl_subset/libs"
SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".c", ".h"))


def main():
    """Build what is missing and print one line with the result or the reason for failure."""
    started = time.monotonic()
    try:
        if sys.platform != "linux":
            raise NotBuilt(f"it needs Linux, this is {sys.platform}")
        CACHE.mkdir(exist_ok=True)
        REASON.unlink(missing_ok=True)
        include = toolkit_headers() or wheel_headers(fetch=True)
        emulator = Emulator(library(include), pycuda(include, fetch=True))
    except (NotBuilt, OSError) as error:
        sentence = f"the CUDA emulator cannot be built: {error}"
        print(sentence, "(the tests that need it will be skipped)")
        if CACHE.is_dir() and os.access(CACHE, os.W_OK):
            REASON.write_text(sentence, encoding="utf-8")
        return
    seconds = time.monotonic() - started
    print(f"CUDA emulator: {emulator.library.parent} is ready ({seconds:.0f} s)")


def built():
    """Return the Emulator, whose PyCUDA must exist; recompile the driver if its sources have changed."""
    include = toolkit_headers() or wheel_headers(fetch=False)
    packages = pycuda(include, fetch=False)
    return Emulator(library(include), packages)


# ---- headers ----


def toolkit_headers():
    """Return the folder of cuda.h in the installed CUDA toolkit, or None if there is none or EMUCUDA_TOOLKIT=0."""
    if os.environ.get("EMUCUDA_TOOLKIT") == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if compiler := shutil.which("nvcc"):
        homes.append(Path(compiler).resolve().parents[1])
    for home in filter(None, homes):
        include = Path(home) / "include"
        if (include / "cuda.h").exists() and (include / "cudaProfiler.h").exists():
            return include
    return None


def wheel_headers(fetch):
    """Return the folder of cuda.h from NVIDIA's header wheels (2.4 MB); download them with pip if `fetch` is true."""
    folder = CACHE / f"headers-{CUDA}"
    if not folder.exists():
        if not fetch:
            raise NotBuilt("the CUDA emulator is not built: run python -m tests.cuda_emulator.build")
        with made(folder) as (new, scratch):
            pip("download", "--no-deps", "--only-binary=:all:", "-d", scratch, *HEADERS)
            for wheel in scratch.glob("*.whl"):
                with zipfile.ZipFile(wheel) as files:
                    files.extractall(new, [name for name in files.namelist() if "/include/" in name])
    found = next(folder.rglob("cuda.h"), None)
    if found is None:
        raise NotBuilt(f"the wheels of {', '.join(HEADERS)} contain no cuda.h")
    return found.parent


def cuda_version(include):
    """Return CUDA_VERSION of the headers; function names in the driver depend on it."""
    return re.search(r"#define CUDA_VERSION (\d+)", (include / "cuda.h").read_text(encoding="utf-8")).group(1)


# ---- the driver ----


def library(include):
    """Return the folder of the emulated libcuda.so.1; compile it if its sources have changed."""
    what = [cuda_version(include), platform.machine(), *FLAGS, *(path.read_text(encoding="utf-8") for path in SOURCES)]
    folder = CACHE / f"driver-{hash_of(what)}"
    if not folder.exists():
        with made(folder) as (new, _):
            command = [*compiler("CC", "cc", "gcc", "clang"), *FLAGS, f"-I{include}", "-shared"]
            command += ["-Wl,-soname,libcuda.so.1", "-o", str(new / "libcuda.so.1")]
            command += [str(path) for path in SOURCES if path.suffix == ".c"]
            run(command, refused=RuntimeError)   # a bug in the emulator must not skip tests
    return folder


# ---- PyCUDA ----


def pycuda(include, fetch):
    """Return the folder of PyCUDA and its dependencies; download and compile them if `fetch` is true."""
    what = [PYCUDA, cuda_version(include), sys.version, np.__version__.split(".")[0], platform.machine(), *PYCUDA_FLAGS]
    folder = CACHE / f"pycuda-{PYCUDA}-{hash_of(what)}"
    if folder.exists():
        return folder
    if not fetch:
        raise NotBuilt("the CUDA emulator is not built: run python -m tests.cuda_emulator.build")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise NotBuilt("Python.h is missing (Debian, Ubuntu: apt install python3-dev)")
    with made(folder) as (new, scratch):
        source = fetch_pycuda(scratch)
        missing = [name for name in IMPORTED if find_spec(name) is None]
        if missing:
            pip("install", "--no-deps", "--target", new, *missing)
        shutil.copytree(source / "pycuda", new / "pycuda", dirs_exist_ok=True)
        compile_pycuda(source, new / "pycuda", include)
        environment = {"PYTHONPATH": str(new), "LD_LIBRARY_PATH": str(library(include))}
        run([sys.executable, "-c", "import pycuda.driver; pycuda.driver.init()"], environment=environment)
    return folder


def fetch_pycuda(scratch):
    """Download and unpack the source distribution. pip runs its setup.py to do so, which needs setuptools."""
    tools = scratch / "tools"
    if missing := [name for name in ("setuptools", "wheel") if find_spec(name) is None]:
        pip("install", "--target", tools, *missing)
    pip(
        *("download", "--no-deps", "--no-build-isolation", "--no-binary=pycuda", "-d", scratch, f"pycuda=={PYCUDA}"),
        environment={"PYTHONPATH": str(tools)},
    )
    archive = next(scratch.glob("pycuda-*.tar.gz"))
    shutil.unpack_archive(archive, scratch)
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def compile_pycuda(source, into, include):
    """Compile the two extension modules of PyCUDA into the folder `into`."""
    command = [*compiler("CXX", "c++", "g++", "clang++"), *PYCUDA_FLAGS, f"-I{include}", f"-I{np.get_include()}"]
    command += [f"-I{sysconfig.get_paths()['include']}"]
    boost = source / "boost_python.cpp"          # one file, because parsing the headers takes most of the time
    files = sorted((source / BOOST / "python").rglob("*.cpp"))
    boost.write_text("".join(f'#include "{path.relative_to(source)}"\n' for path in files), encoding="utf-8")
    rest = [*(source / BOOST / "thread/src/pthread").glob("*.cpp"), *(source / BOOST / "system/src").glob("*.cpp")]
    wrapped = [source / "src" / name for name in ("wrapper/wrap_cudadrv.cpp", "wrapper/mempool.cpp")]
    small = [source / "src" / name for name in ("cpp/cuda.cpp", "cpp/bitlog.cpp")]
    private = source / "src/wrapper/_pvt_struct_v3.cpp"
    longest_first = [*wrapped, boost, *small, *rest, private]

    def compile_one(path):
        output = path.with_suffix(".o")
        run([*command, "-c", str(path.relative_to(source)), "-o", str(output)], folder=source)
        return str(output)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        *driver, structure = pool.map(compile_one, longest_first)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    link = [command[0], "-shared", "-pthread"]
    run([*link, "-o", str(into / f"_driver{suffix}"), *driver, str(library(include) / "libcuda.so.1")])
    run([*link, "-o", str(into / f"_pvt_struct{suffix}"), structure])


# ---- tools ----


@contextmanager
def made(folder):
    """Yield a new folder, renamed to `folder` when the block ends, and a temporary folder for intermediate files.

    If another process builds the same folder concurrently, the first to finish wins.
    """
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="building-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new, Path(scratch)
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def compiler(variable, *names):
    """Return the compiler command as a list: from the environment variable, else the first name found on the path."""
    command = shlex.split(os.environ.get(variable, "")) or [name for name in names if shutil.which(name)][:1]
    if not command or shutil.which(command[0]) is None:
        raise NotBuilt(f"no compiler was found (tried {', '.join(names)}; Debian, Ubuntu: apt install g++)")
    return command


def pip(*arguments, environment=None):
    """Run pip of this Python; raise NotBuilt with the line of its output that reports an error."""
    if find_spec("pip") is None:
        raise NotBuilt("this Python has no pip")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries=2"]
    run([sys.executable, "-m", "pip", arguments[0], *quiet, *map(str, arguments[1:])], environment=environment)


def run(command, folder=None, environment=None, refused=NotBuilt):
    """Run a command; if it fails, raise `refused` with the first output line that mentions an error, else the last."""
    result = subprocess.run(
        command, cwd=folder, env=os.environ | (environment or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, errors="replace",
    )
    if result.returncode:
        lines = result.stdout.strip().splitlines() or ["it printed nothing"]
        line = next((line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)), lines[-1])
        raise refused(f"{shlex.join(command[:4])} ... ended with status {result.returncode}: {line.strip()}")


def hash_of(texts):
    """Return a short hash of a list of strings."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
