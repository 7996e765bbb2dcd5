"""Processor cores available to this process: its CPU affinity, or all cores if the platform has no affinity."""

import os


def core_numbers() -> frozenset[int]:
    """Return the numbers of the available cores."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cores() -> int:
    """Return the number of available cores."""
    return len(core_numbers())
