"""The main module of a program that starts processes. Each spawned process imports it, so it must be importable."""

import multiprocessing
import sys
from pathlib import Path

UNGUARDED = 97                                   # exit status of a process that imports an unguarded main module


def check_main_module() -> str:
    """Return why this program cannot start processes, or an empty string; call it before anything is written.

    A spawned process that imports an unguarded main module, and thereby calls this function, ends with status
    UNGUARDED. Its parent reports that.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):     # as multiprocessing itself detects it
        raise SystemExit(UNGUARDED)
    path = main_path()
    if path and not path.exists():
        return f"a program read from {path.name} cannot start processes, which would import it: save it in a file"
    return ""


def unguarded_sentence() -> str:
    """Return the message of a parent whose process has ended with status UNGUARDED."""
    return (
        f"{main_path() or 'the main program'} starts processes when it is imported, as each of them does: put its "
        "calls under `if __name__ == \"__main__\":`"
    )


def main_path() -> Path | None:
    """Return the file of the main module; None if a spawned process does not import it by its path."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    return Path(path) if path and getattr(main, "__spec__", None) is None else None
