"""The comparison of rules and strategies at equal virtual time, 2 to 1,024 workers, three links.

python -m experiments.comparison [--only bsp easgd ...] [--workers 2 8 ...] [--draw] [--out FOLDER] [--seed 0]

The perceptron of experiments.asgd is trained on the clock of AlexNet (clock.py). The settings of each method are
searched for each number of workers and link (search.py). Without --only, --workers and --out, the results replace
those of this folder: trials.csv has a line for every trial, best.jsonl a row with the curve for the best settings, and
pictures/ the figures. The error of the best settings is the mean over the seeds, that of other trials has one seed.
--draw computes figures, tables and claims from these files, without training.
"""

import argparse
import csv
import json
import pathlib
import time

from experiments.asgd.claims import table
from experiments.asgd.pool import PROCESSES, show, workers, write
from experiments.comparison.claims import claims
from experiments.comparison.figures import draw
from experiments.comparison.methods import METHODS, PUBLISHED, Sizes
from experiments.comparison.search import best_rows, published_rows
from experiments.comparison.tables import decisions, overview

HERE = pathlib.Path(__file__).parent
COLUMNS = ("method", "strategy", "link", "workers", "settings", "seconds", "error", "sent", "load", "best", "source")


def rows_of(sizes, methods=tuple(METHODS), processes=PROCESSES, compiled=True, log=show):
    """Return the rows of all trials of these methods.

    Args:
        processes: number of worker processes; 0 trains in this process.
    """
    jobs = [(best_rows, name, count) for count in sorted(sizes.workers(), reverse=True) for name in methods]
    if sizes.published in sizes.workers():
        jobs += [(published_rows, name) for name in dict.fromkeys(name for name, *_ in PUBLISHED) if name in methods]
    rows = []
    with workers(processes) as submit:
        began = time.perf_counter()
        waiting = [(job, submit(*job, sizes, compiled)) for job in jobs]
        for (_, *names), future in waiting:
            found = future.result()
            rows += found
            log(f"{' '.join(map(str, names))}: {len(found)} trials, {time.perf_counter() - began:.0f} s")
    return rows


def save(rows, folder):
    """Write all trials to trials.csv, and the best of each method, and those of the papers, to best.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(COLUMNS)
        for row in rows:
            settings = " ".join(f"{name}={value:.6g}" for name, value in row["settings"].items())
            lines.writerow([settings if name == "settings" else rounded(row[name]) for name in COLUMNS])
    write([row for row in rows if row["best"] or row["source"]], folder / "best.jsonl")


def rounded(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def read(folder):
    """Return (the rows of best.jsonl, the rows of trials.csv without curves)."""
    best = [json.loads(line) for line in (folder / "best.jsonl").read_text(encoding="utf-8").splitlines()]
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        trials = [typed(row) for row in csv.DictReader(file)]
    return best, trials


def typed(row):
    """Return a line of trials.csv with its numbers as numbers and its settings as a dict."""
    settings = dict(pair.split("=") for pair in row["settings"].split())
    numbers = {name: float(row[name]) for name in ("seconds", "error", "sent", "load")}
    return row | numbers | {
        "settings": {name: float(value) for name, value in settings.items()}, "workers": int(row["workers"]),
        "best": row["best"] == "True",
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m experiments.comparison", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--workers", nargs="+", type=int, metavar="N", help="numbers of workers")
    parser.add_argument("--draw", action="store_true", help="only draw, from existing results")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER",
                        help="of results and figures (experiments/comparison; of a part runs/comparison)")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="shows the variation between seeds (%(default)s)")
    options = parser.parse_args(arguments)
    part = options.only or options.workers or options.seed
    folder = options.out or (pathlib.Path("runs", "comparison") if part else HERE)
    if not options.draw:
        sizes = Sizes(seed=options.seed)
        if options.workers:
            sizes = sizes._replace(steps=tuple(each for each in sizes.steps if each[0] in options.workers))
        save(rows_of(sizes, options.only or tuple(METHODS), options.processes), folder)
    best, trials = read(folder)
    for picture in draw(best, trials, folder / "pictures"):
        print(f"drew {picture}")
    print(overview(best))
    print(decisions(best))
    print(table(claims(best, trials)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
