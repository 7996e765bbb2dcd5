"""Waiting for MPI messages, in the main thread or beside its computation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

PAUSE = 1e-4                                     # seconds between two tests


def wait(requests: Iterable[MPI.Request]) -> None:
    """Wait until all these messages have been sent or received.

    MPI waits actively, on a whole core. In a thread other than the main one, which computes, this function sleeps
    between tests instead.
    """
    requests = list(requests)
    if in_main_thread():
        for request in requests:
            request.Wait()
    else:
        while not all(request.Test() for request in requests):
            time.sleep(PAUSE)


def in_main_thread() -> bool:
    """Return whether this is the main thread, which may wait actively."""
    return threading.current_thread() is threading.main_thread()
