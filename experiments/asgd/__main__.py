"""GPU A-SGD: the experiments of Paine et al. 2013 in virtual time, with the paper's figures, and two further ones.

python -m experiments.asgd [--quick] [--out FOLDER] [--pictures FOLDER] [--only warm cold ...] [--draw] [--seed 0]
                          [--json FILE]

A perceptron is trained on a synthetic data set (task.py) on a virtual clock (simulation.py), with the production code
of server and clients. The numbers of clients, the exchange intervals and the exchange costs are defined in
experiments.py. Each trial is one row in FOLDER/<experiment>.jsonl. The figures and the table of claims are computed
only from these rows, so --draw redraws them without training.

    curves   experiment 1, figure 1         train and test error over epochs, of 8 clients and of one
    cold     experiment 2, figure 2         1 to 32 clients from a cold start
    warm     experiment 3, figures 3 and 4  n_sync 10 to 90 (the paper: 100 to 900) by 1 to 8 clients, from a warm start
    rules    not in the paper               BSP, EASGD, GOSGD and A-SGD at equal time
    large    not in the paper               32 to 1,024 clients, three servers

The table lists every claim of the paper with the measured number and whether the claim is reproduced.
"""

import argparse
import json
import pathlib
import time
from operator import itemgetter

from experiments.asgd.claims import claims, table
from experiments.asgd.experiments import EXPERIMENTS, QUICK, Sizes, trials
from experiments.asgd.figures import draw
from experiments.asgd.pool import PROCESSES, show, workers, write
from experiments.asgd.task import task
from experiments.asgd.trials import run

HERE = pathlib.Path(__file__).parent


def work(trial, sizes, compiled):
    """Return the row of a trial. The process caches the task."""
    return run(trial, task(sizes.train, sizes.test, compiled))


def rows_of(experiments, sizes, folder, processes=PROCESSES, compiled=True, log=show):
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
            write(found[name], folder / f"{name}.jsonl")
            log(f"{name}: {len(rows)} trials, {sum(row['minibatches'] for row in rows):,} minibatches, "
                f"{time.perf_counter() - began:.0f} s")
    return found


def read(folder):
    """Return the rows in a folder by experiment, without experiments that have no rows."""
    found = {name: folder / f"{name}.jsonl" for name in EXPERIMENTS}
    found = {name: path.read_text(encoding="utf-8").splitlines() for name, path in found.items() if path.exists()}
    return {name: list(map(json.loads, lines)) for name, lines in found.items() if lines}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m experiments.asgd", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="sizes too small for most claims; about two minutes")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write one JSON object per claim")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER",
                        help="of the rows (runs/asgd; with --quick runs/asgd_quick)")
    parser.add_argument("--pictures", type=pathlib.Path, metavar="FOLDER",
                        help="(experiments/asgd/pictures; with --quick as --out)")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS, metavar="EXPERIMENT")
    parser.add_argument("--draw", action="store_true", help="only draw, from existing rows")
    parser.add_argument("--seed", type=int, default=0, help="shows the variation between seeds (%(default)s)")
    options = parser.parse_args(arguments)
    folder = options.out or pathlib.Path("runs", "asgd_quick" if options.quick else "asgd")
    if not options.draw:
        rows_of(options.only, (QUICK if options.quick else Sizes())._replace(seed=options.seed), folder)
    rows = read(folder)
    pictures = options.pictures or (folder if options.quick else HERE / "pictures")
    for picture in draw(rows, pictures):
        print(f"drew {picture}")
    found = claims(rows)
    print(table(found))
    if options.json:
        write([claim.row() for claim in found], options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
