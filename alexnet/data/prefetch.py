"""Prefetching by threads: results in order, in bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def in_order(
    function: Callable[[J], R], jobs: Iterable[J], threads: int = 1, ahead: int = 2
) -> Generator[R, None, None]:
    """Yield function(job) of every job in order, while `threads` threads compute those of the next `ahead` jobs.

    An exception of `function` is raised when its result is due. If the generator is closed early, for example by an
    error or Ctrl-C within `with closing(...)`, it waits for the running jobs and starts no others.

    Args:
        jobs: may be infinite. The caller's thread takes the next job when fewer than `ahead` are pending.
    """
    jobs = iter(jobs)
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            pending.extend(pool.submit(function, job) for job in islice(jobs, ahead - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
