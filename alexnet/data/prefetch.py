"""Prefetching by threads: results in order, in bounded memory."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice


def in_order(function, jobs, threads=1, ahead=2):
    """Yield function(job) of every job in order, while `threads` threads compute those of the next `ahead` jobs.

    An exception of `function` is raised when its result is due. If the generator is closed early, for example by an
    error or Ctrl-C within `with closing(...)`, it waits for the running jobs and starts no others.

    Args:
        jobs: may be infinite. The caller's thread takes the next job when fewer than `ahead` are pending.
    """
    jobs, pending = iter(jobs), deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            pending.extend(pool.submit(function, job) for job in islice(jobs, ahead - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
