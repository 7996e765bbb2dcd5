"""GPU A-SGD: the experiments of Paine et al. 2013 in virtual time, with the paper's figures, and two further ones.

python -m benchmarks.asgd [--quick] [--out FOLDER] [--pictures FOLDER] [--only warm cold ...] [--draw] [--seed 0]
                         [--json FILE]

A perceptron is trained on a synthetic data set (benchmarks/asgd_task.py) on a virtual clock (multigpu/virtual), with
the production code of server and clients. The numbers of clients, the exchange intervals and the exchange costs are
defined in benchmarks/asgd_experiments.py. Each trial is one row in FOLDER/<experiment>.jsonl. The figures and the table
of claims are computed only from these rows, so --draw redraws them without training.

    curves   experiment 1, figure 1         train and test error over epochs, of 8 clients and of one
    cold     experiment 2, figure 2         1 to 32 clients from a cold start
    warm     experiment 3, figures 3 and 4  n_sync 10 to 90 (the paper: 100 to 900) by 1 to 8 clients, from a warm start
    rules    not in the paper               BSP, EASGD, GOSGD and A-SGD at equal time
    large    not in the paper               32 to 1,024 clients, three servers

The table lists every claim of the paper with the measured number and whether the claim is reproduced.
"""

import pathlib
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from operator import itemgetter

from benchmarks import asgd_claims, asgd_figures, report
from benchmarks.asgd_experiments import EXPERIMENTS, QUICK, Sizes, trials
from benchmarks.asgd_task import task
from benchmarks.asgd_trials import run
from multigpu.process import CONTEXT, end_with_parent, environment

HERE = pathlib.Path(__file__).parent
PROCESSES = 2


def work(trial, sizes, compiled):
    """Return the row of a trial. The process caches the task."""
    return run(trial, task(sizes.train, sizes.test, compiled))


def say(sentence):
    """Print without buffering, also into a file."""
    print(sentence, flush=True)


def rows_of(experiments, sizes, folder, processes=PROCESSES, compiled=True, tell=say):
    """Run the trials of the experiments. Write their rows to the folder and return them by experiment.

    Args:
        processes: number of worker processes; 0 runs the trials in this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: group for name, group in trials(sizes).items() if name in experiments}
    found = {}
    with workers(processes) as submit:
        waiting = {name: [submit(work, trial, sizes, compiled) for trial in group] for name, group in wanted.items()}
        for name, futures in waiting.items():
            began = time.perf_counter()
            rows = [future.result() for future in futures]
            found[name] = sorted(rows, key=itemgetter("n_sync", "clients", "name", "rate", "seed"))
            report.write(found[name], folder / f"{name}.jsonl")
            tell(f"{name}: {len(rows)} trials, {sum(row['minibatches'] for row in rows):,} minibatches, "
                 f"{time.perf_counter() - began:.0f} s after the one before")
    return found


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


def read(folder):
    """Return the rows in a folder by experiment, without experiments that have no rows."""
    found = {name: report.read(folder / f"{name}.jsonl") for name in EXPERIMENTS}
    return {name: rows for name, rows in found.items() if rows}


def main(arguments=None):
    parser = report.parser(__doc__, quick="too small for most claims; two minutes where nothing is compiled")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER", help="of the rows; runs/asgd, or runs/asgd_quick")
    parser.add_argument("--pictures", type=pathlib.Path, metavar="FOLDER", help="benchmarks/pictures; quick: as --out")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS, metavar="EXPERIMENT")
    parser.add_argument("--draw", action="store_true", help="from the rows that are there")
    parser.add_argument("--seed", type=int, default=0, help="another one shows how much is chance (%(default)s)")
    options = parser.parse_args(arguments)
    folder = options.out or pathlib.Path("runs", "asgd_quick" if options.quick else "asgd")
    if not options.draw:
        rows_of(options.only, (QUICK if options.quick else Sizes())._replace(seed=options.seed), folder)
    rows = read(folder)
    pictures = options.pictures or (folder if options.quick else HERE / "pictures")
    for picture in asgd_figures.draw(rows, pictures):
        print(f"drew {picture}")
    claims = asgd_claims.claims(rows)
    print(asgd_claims.table(claims))
    report.write([claim.row() for claim in claims], options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
