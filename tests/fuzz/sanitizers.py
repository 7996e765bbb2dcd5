"""Runs the C kernels under the sanitizers of GCC: python -m tests.fuzz.sanitizers

address   AddressSanitizer and UndefinedBehaviorSanitizer: the kernel tests, and random cases of ops.py
thread    ThreadSanitizer: random cases of ops.py on several threads, with openmp.c instead of libgomp, whose
          synchronisation ThreadSanitizer does not see

The compiler driver gets the sanitizer's flags through CC and compiles into a temporary cache folder, so the program
tests the kernels with the flags that they always have. The first error ends a command, and the exit status is 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPENMP = Path(__file__).with_name("openmp.c")
# Tests of kernels; those of ops/kernels that read assembly need other flags.
TESTS = [
    "tests/alexnet/ops/kernels", "tests/alexnet/ops/test_convolution.py", "tests/alexnet/ops/test_max_pool.py",
    "tests/alexnet/ops/test_average_pool.py", "tests/alexnet/ops/test_lrn.py", "tests/alexnet/ops/test_crop.py",
    "tests/alexnet/ops/test_batch_norm.py", "tests/alexnet/ops/test_dropout.py", "tests/alexnet/backends/cpu",
    "tests/alexnet/data/test_resize.py", "tests/alexnet/data/test_resized_crop.py",
    "tests/multigpu/exchange/test_fp16.py", "tests/multigpu/rules/test_server_updates.py",
    "-k", "not jax and not inner_loop and not numba", "-m", "not mpi", "-p", "no:cacheprovider", "-q", "--timeout=3000",
]
FLAGS = {
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g",
    "thread": "-fsanitize=thread -g",
}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
ISAS = ["auto", "portable"]


def available() -> bool:
    """Return whether GCC and the libraries of its sanitizers are installed."""
    return shutil.which("gcc") is not None and all(map(os.path.isabs, map(runtime, LIBRARIES.values())))


def runtime(name: str) -> str:
    """Return the path of a sanitizer's library, which must be the first that a process loads."""
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def fixed_addresses() -> list[str]:
    """Return the words before a command without random addresses, which ThreadSanitizer may refuse; [] if not allowed.

    Containers may not allow it.
    """
    words = ["setarch", "-R"]
    allowed = shutil.which(words[0]) and not subprocess.run([*words, "true"], capture_output=True).returncode
    return words if allowed else []


def prepared(sanitizer: str, command: list[str], cache: Path, isa: str) -> tuple[list[str], dict[str, str]]:
    """Return a command, and the environment in which its kernels are compiled with a sanitizer into the folder `cache`.

    Python itself is not compiled with the sanitizer, so the sanitizer's library is preloaded.
    """
    libraries = [runtime(LIBRARIES[sanitizer])]
    if sanitizer == "thread":
        libraries.insert(0, compiled_openmp(cache))
        command = fixed_addresses() + command
    return command, os.environ | {
        "CC": f"gcc {FLAGS[sanitizer]}", "ALEXNET_CACHE": os.fspath(cache), "ALEXNET_ISA": isa,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",        # Python does not free all memory at its end
        "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1",
        "PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, (os.fspath(ROOT), os.environ.get("PYTHONPATH")))),
    }


def compiled_openmp(folder: Path) -> str:
    """Compile openmp.c and return the path of the library."""
    library = os.fspath(folder / "openmp.so")
    flags = ["-O1", "-g", "-fsanitize=thread", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, os.fspath(OPENMP), "-o", library], check=True)
    return library


def ops_command(cases: int, *more: str) -> list[str]:
    """Return the command of random cases on the cpu backend, whose memory the sanitizers observe."""
    return [
        sys.executable, "-m", "tests.fuzz.ops", "--backend", "cpu", "--threads", "3", "--plain-memory", "--cases",
        str(cases), *more,
    ]


def run(sanitizer: str, isa: str, what: str, command: list[str], cache: Path) -> bool:
    """Run a command under a sanitizer; print its time and, if it fails, its output. Return whether it succeeded."""
    start = time.monotonic()
    command, variables = prepared(sanitizer, command, cache, isa)
    done = subprocess.run(command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.strip().splitlines() or ["no output"]
    result = "passed" if done.returncode == 0 else f"failed with status {done.returncode}"
    print(f"{sanitizer}, isa={isa}, {what}: {result} after {time.monotonic() - start:.0f} s: {lines[-1]}", flush=True)
    if done.returncode:
        print("\n".join(lines[-80:]), flush=True)
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """Run the sanitizers; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sanitizers", description=__doc__.splitlines()[0])
    parser.add_argument("sanitizer", nargs="*", choices=[*FLAGS, []], help="default: both")
    parser.add_argument("--cases", type=int, default=3000, help="random cases for each instruction set")
    parser.add_argument("--isa", action="append", help="instruction set; default: auto and portable; may be repeated")
    parser.add_argument("--no-tests", action="store_true", help="random cases only")
    given = parser.parse_args(arguments)
    if not available():
        raise SystemExit("the sanitizers need gcc and its libraries: install them (Debian: apt install gcc)")
    passed = []
    with tempfile.TemporaryDirectory(prefix="sanitizers-") as folder:
        for sanitizer in given.sanitizer or list(FLAGS):
            cache = Path(folder, sanitizer)
            cache.mkdir()
            for isa in given.isa or ISAS:
                what = f"{given.cases} random cases"
                passed.append(run(sanitizer, isa, what, ops_command(given.cases), cache))
            if sanitizer == "address" and not given.no_tests:
                passed.append(run(sanitizer, "auto", "tests", [sys.executable, "-m", "pytest", *TESTS], cache))
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
