"""Runs the C kernels under the sanitizers of GCC: python -m tests.fuzz.sanitizers

address   AddressSanitizer and UndefinedBehaviorSanitizer: the kernel tests, and random cases of ops.py
thread    ThreadSanitizer: random cases of ops.py on several threads, with openmp.c instead of libgomp, whose
          synchronisation ThreadSanitizer does not see

The compiler driver gets the sanitizer's flags through CC and compiles into a cache folder of its own, so the program
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
KERNEL_TESTS = [
    "tests/alexnet/ops/kernels", "tests/alexnet/ops/test_convolution.py", "tests/alexnet/ops/test_max_pool.py",
    "tests/alexnet/ops/test_average_pool.py", "tests/alexnet/ops/test_lrn.py", "tests/alexnet/ops/test_crop.py",
    "tests/alexnet/ops/test_batch_norm.py", "tests/alexnet/ops/test_dropout.py", "tests/alexnet/backends/cpu",
    "tests/alexnet/data/test_resize.py", "tests/alexnet/data/test_resized_crop.py",
    "tests/multigpu/exchange/test_fp16.py", "tests/multigpu/rules/test_server_updates.py",
    "-k", "not jax and not inner_loop and not numba", "-m", "not mpi", "-p", "no:cacheprovider", "-q",
]
ADDRESS_FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
THREAD_FLAGS = "-fsanitize=thread -g"


def runtime(name: str) -> str:
    """Return the path of a sanitizer's library, which must be the first that a process loads."""
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit(f"{name} was not found: install GCC with its sanitizers (Debian: apt install gcc)")
    return path


def environment(flags: str, libraries: list[str], cache: Path, isa: str) -> dict[str, str]:
    """Return the environment of a command whose kernels are compiled with `flags`."""
    return os.environ | {
        "CC": f"gcc {flags}", "ALEXNET_CACHE": os.fspath(cache), "ALEXNET_ISA": isa, "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",        # Python does not free all memory at its end
        "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
        "PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, (os.fspath(ROOT), os.environ.get("PYTHONPATH")))),
    }


def ops_command(cases: int, *more: str) -> list[str]:
    """Return the command of random cases on the cpu backend, whose memory the sanitizers observe."""
    return [
        sys.executable, "-m", "tests.fuzz.ops", "--backend", "cpu", "--threads", "3", "--plain-memory", "--cases",
        str(cases), *more,
    ]


def run(name: str, command: list[str], variables: dict[str, str]) -> bool:
    """Run a command and print its name, its time and, if it fails, its output. Return whether it succeeded."""
    start = time.monotonic()
    done = subprocess.run(command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.strip().splitlines()
    print(f"{name}: {'passed' if done.returncode == 0 else f'failed with status {done.returncode}'}, "
          f"{time.monotonic() - start:.0f} s: {lines[-1] if lines else 'no output'}", flush=True)
    if done.returncode:
        print("\n".join(lines[-80:]), flush=True)
    return done.returncode == 0


def check_addresses(cases: int, isas: list[str], tests: bool, cache: Path) -> bool:
    """Run kernel tests and random cases under AddressSanitizer and UndefinedBehaviorSanitizer."""
    passed = []
    for isa in isas:
        variables = environment(ADDRESS_FLAGS, [runtime("libasan.so")], cache, isa)
        passed.append(run(f"address, undefined, {isa}: {cases} cases", ops_command(cases), variables))
    if tests:
        variables = environment(ADDRESS_FLAGS, [runtime("libasan.so")], cache, "auto")
        variables["PYTEST_ADDOPTS"] = "--timeout=3000"
        passed.append(run("address, undefined: tests", [sys.executable, "-m", "pytest", *KERNEL_TESTS], variables))
    return all(passed)


def check_threads(cases: int, isas: list[str], cache: Path) -> bool:
    """Run random cases on several threads under ThreadSanitizer."""
    library = cache / "openmp.so"
    flags = ["-O1", "-g", "-fsanitize=thread", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, os.fspath(OPENMP), "-o", os.fspath(library)], check=True)
    fixed_addresses = ["setarch", "-R"] if shutil.which("setarch") else []       # the runtime expects these
    passed = []
    for isa in isas:
        variables = environment(THREAD_FLAGS, [os.fspath(library), runtime("libtsan.so")], cache, isa)
        command = fixed_addresses + ops_command(cases)
        passed.append(run(f"thread, {isa}: {cases} cases", command, variables))
    return all(passed)


def main(arguments: list[str] | None = None) -> int:
    """Run the sanitizers; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sanitizers", description=__doc__.splitlines()[0])
    parser.add_argument("sanitizer", nargs="*", choices=["address", "thread", []], help="default: both")
    parser.add_argument("--cases", type=int, default=3000, help="random cases for each instruction set")
    parser.add_argument("--isa", action="append", help="instruction set; default: auto and portable")
    parser.add_argument("--no-tests", action="store_true", help="random cases only")
    given = parser.parse_args(arguments)
    chosen = given.sanitizer or ["address", "thread"]
    isas = given.isa or ["auto", "portable"]
    passed = []
    with tempfile.TemporaryDirectory(prefix="sanitizers-") as folder:
        if "address" in chosen:
            passed.append(check_addresses(given.cases, isas, not given.no_tests, Path(folder)))
        if "thread" in chosen:
            passed.append(check_threads(given.cases, isas, Path(folder)))
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
