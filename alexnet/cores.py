"""The processor cores that this process may use: those that it is bound to, or the machine's where nobody can tell."""

import os


def core_numbers():
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cores():
    """How many cores there are to use."""
    return len(core_numbers())
