"""A pool of processes that ends with its parent: a worker exits at an EOFError of its pipe."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

from alexnet.data.batch_file import DataError
from alexnet.native.main_module import UNGUARDED, check_main_module, unguarded_sentence

J = TypeVar("J")
R = TypeVar("R")


def serve(pipe: Connection, work: Callable[[J], R]) -> None:
    """Entry point of a worker: send work(job) for each job, until the parent closes the pipe or dies.

    A DataError or OSError is sent back in place of a result.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)             # Ctrl-C reaches the whole group; the parent decides
    try:
        while True:
            job = pipe.recv()
            try:
                result: R | Exception = work(job)
            except (DataError, OSError) as error:
                result = error
            pipe.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def results(work: Callable[[J], R], jobs: Iterable[J], workers: int) -> Iterator[tuple[J, R]]:
    """Yield (job, work(job)) for every job as it is finished, in any order, from `workers` processes.

    work is a module-level function, because each process is spawned and imports it.

    Raises:
        DataError, OSError: raised by work.
        RuntimeError: a process died.
    """
    if problem := check_main_module():
        raise DataError(problem)
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)[::-1]
    team: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(min(workers, len(waiting))):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            team[ours] = process
        yield from results_of(team, waiting)
        for pipe in team:
            pipe.close()
    finally:
        for pipe, process in team.items():
            if not pipe.closed:                              # after an error: do not wait for an unfinished job
                process.terminate()
                pipe.close()
            process.join()


def results_of(team: dict[Connection, SpawnProcess], jobs: list[J]) -> Iterator[tuple[J, R]]:
    """Send jobs, the last one first, to the pipes of team; yield (job, result) until no job is left."""
    running: dict[Connection, J] = {}

    def send_job(pipe: Connection) -> None:
        running[pipe] = jobs.pop()
        pipe.send(running[pipe])

    try:
        for pipe in team:
            send_job(pipe)
        while running:
            for pipe in [pipe for pipe in wait(list(running)) if isinstance(pipe, Connection)]:
                result = pipe.recv()
                job = running.pop(pipe)
                if isinstance(result, BaseException):
                    raise result
                if jobs:
                    send_job(pipe)
                yield job, result
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        process = team[pipe]
        process.join()
        if process.exitcode == UNGUARDED:
            raise DataError(unguarded_sentence()) from None
        raise RuntimeError(
            f"a worker process died with exit status {process.exitcode} (killed for lack of memory, perhaps); "
            "the same command resumes where this stopped"
        ) from error
