"""A pool of processes that ends with its parent: a worker exits at an EOFError of its pipe."""

import multiprocessing
import os
import signal
from multiprocessing.connection import wait

from alexnet.data.batch_file import DataError


def default_workers():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def serve(pipe, work):
    """Entry point of a worker: answer each job with work(job), until the parent closes the pipe or dies.

    A DataError or OSError is sent back in place of an answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)             # Ctrl-C reaches the whole group; the parent decides
    try:
        while True:
            job = pipe.recv()
            try:
                answer = work(job)
            except (DataError, OSError) as error:
                answer = error
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def answers(work, jobs, workers):
    """Yield (job, work(job)) for every job as it is finished, in any order, from `workers` processes.

    work is a module-level function, because each process is spawned and imports it.

    Raises:
        DataError, OSError: raised by work.
        RuntimeError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    jobs = list(jobs)[::-1]
    team = {}
    try:
        for _ in range(min(workers, len(jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            team[ours] = process
        yield from exchanged(jobs, team)
        for pipe in team:
            pipe.close()
    finally:
        for pipe, process in team.items():
            if not pipe.closed:                              # after an error: do not wait for an unfinished job
                process.terminate()
                pipe.close()
            process.join()


def exchanged(jobs, team):
    """Send jobs, the last one first, to the pipes of team; yield (job, answer) until no job is left."""
    doing = {}

    def give(pipe):
        doing[pipe] = jobs.pop()
        pipe.send(doing[pipe])

    try:
        for pipe in team:
            give(pipe)
        while doing:
            for pipe in wait(list(doing)):
                answer = pipe.recv()
                job = doing.pop(pipe)
                if isinstance(answer, BaseException):
                    raise answer
                if jobs:
                    give(pipe)
                yield job, answer
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        process = team[pipe]
        process.join()
        raise RuntimeError(
            f"a worker process died with exit status {process.exitcode} (killed for lack of memory, perhaps); "
            "the same command resumes where this stopped"
        ) from error
