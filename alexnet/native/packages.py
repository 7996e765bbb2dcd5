"""Python and the packages that the programs need: whether they are installed, and the command that installs them.

This module imports only the standard library, so it can run before any package is installed.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import alexnet

PROJECT = "alexnet-pytensor"                     # in pyproject.toml
OLDEST_PYTHON = (3, 11)                          # in pyproject.toml
PACKAGES = {                                     # module -> name, of what every program needs
    "pytensor": "PyTensor",
    "numpy": "NumPy",
    "scipy": "SciPy",
    "PIL": "Pillow",
    "hickle": "hickle",
    "h5py": "h5py",
    "yaml": "PyYAML",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
}
TOP = Path(__file__).resolve().parents[2]        # the checkout, or site-packages
IN_CHECKOUT = (TOP / "pyproject.toml").exists()
# How a training is started: by a user, by mpiexec, and the program's name before its messages.
TRAIN, MPI_TRAIN, TRAIN_PROGRAM = (
    ("python train.py", "python -m mpi4py train.py", "train.py") if IN_CHECKOUT
    else ("alexnet train", "python -m mpi4py -m alexnet train", "alexnet train")
)


def install(extra: str = "") -> str:
    """Return the pip command that installs this project with an optional extra: editable in a checkout."""
    target = ("." if IN_CHECKOUT else PROJECT) + (f"[{extra}]" if extra else "")
    quoted = f'"{target}"' if extra else target              # a shell may take [ ] for a pattern
    return f"pip install {'-e ' if IN_CHECKOUT else ''}{quoted}"


def begin(program: str, arguments: Sequence[str]) -> None:
    """Begin a program: print the versions if asked by --version, else check that all packages are installed.

    Args:
        program: name of the program, the first word of the message.
        arguments: of the program, without its name.

    Raises:
        SystemExit: 0 after printing the versions, 2 if Python is too old or a package is not installed.
    """
    if arguments and arguments[0] in ("--version", "-v", "-V"):
        print(versions())
        raise SystemExit(0)
    with ended_by_ctrl_c():
        problem = problem_of_python() or problem_of_packages()
    if problem:
        print(f"{program}: {problem}", file=sys.stderr)
        raise SystemExit(2)


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Let SIGINT end the process at once within the with block, in which a program imports packages.

    A KeyboardInterrupt there can be lost: importlib runs a callback of a weak reference for each import, and some
    extension modules ignore an exception of a function that they call while they are initialised. Outside the main
    thread, or if SIGINT is ignored or has a handler, nothing changes.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def versions() -> str:
    """Return the versions of this project, of the packages that affect results, and of Python."""
    from importlib import metadata  # slow to import, and rarely needed

    parts = [f"{PROJECT} {alexnet.__version__}"]
    for module in ("pytensor", "numpy"):
        try:
            parts.append(f"{PACKAGES[module]} {metadata.version(module)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{PACKAGES[module]} is not installed")
    return ", ".join([*parts, f"Python {sys.version.split()[0]}"])


def problem_of_python() -> str:
    """Return what is wrong with the version of Python, or an empty string."""
    if sys.version_info >= OLDEST_PYTHON:
        return ""
    needed = ".".join(map(str, OLDEST_PYTHON))
    return f"Python {needed} or newer is needed, got {'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})"


def problem_of_packages() -> str:
    """Return which packages are not installed and what to do, or an empty string."""
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if not missing:
        return ""
    names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]])) if len(missing) < 4 else (
        f"{missing[0]} and {len(missing) - 1} other packages"
    )
    verb = "is" if len(missing) == 1 else "are"
    return f"{names} {verb} not installed for {sys.executable}: {remedy()}"


def remedy() -> str:
    """Return how to get the packages: by the virtual environment of `make` if there is one, else by pip."""
    activate = TOP / ".venv" / "bin" / "activate"
    if activate.exists() and Path(sys.prefix) != activate.parents[1]:
        return f"run `. {os.path.relpath(activate)}` first, or `{install()}`"
    return install()
