"""Runs the trials of an experiment in several processes, and writes their rows."""

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from multigpu.launch.process import CONTEXT, end_with_parent, environment

PROCESSES = 2


@contextmanager
def workers(processes):
    """Yield a function submit(function, *arguments) that returns a future.

    Args:
        processes: size of the process pool; 0 calls the function immediately in this process.
    """
    if not processes:
        yield AtOnce
        return
    # one BLAS thread per process, so that the processes do not oversubscribe the cores and the results do not depend on
    # the number of cores
    with environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        pool = ProcessPoolExecutor(processes, CONTEXT, initializer=end_with_parent)
        try:
            yield pool.submit
        finally:
            pool.shutdown(cancel_futures=True)


class AtOnce:
    """A future whose result is computed when it is created."""

    def __init__(self, function, *arguments):
        self._result = function(*arguments)

    def result(self):
        return self._result


def show(sentence):
    """Print without buffering, also into a file."""
    print(sentence, flush=True)


def write(rows, path):
    """Write one JSON object per row and line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
