"""Work done by threads ahead of whoever takes its results: in order, and in bounded memory."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice


def in_order(function, jobs, threads=1, ahead=2):
    """Yield function(job) of every job in order, while `threads` threads compute those of the next `ahead` jobs.

    jobs may be endless: the caller's thread takes each when there is room for it.  What function raises is raised where
    its result is due.  Closed before its end, by an error or Ctrl-C within `with closing(...)`, it waits for the jobs
    that are being done and begins no other.
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
