"""What happens in long use and when processes are killed.

python -m experiments.endurance TASK [--count N] [--first N] [--series NAME ...] [--json FILE] [--minutes M]
python -m experiments.endurance table [--json FILE] [--csv FILE] [--add CSV]

    steps        one training of N steps (30,000), two workers with loaders, checkpoints and validation: the slopes of
                 memory, descriptors, threads and files over its last 90 %
    starts       N short runs (1,000) that finish, are stopped, or lose the launcher or a worker
    saves        N kills (1,000) of a process that saves checkpoints
    preprocess   N kills (200) of `python -m preprocess`, each followed by a run that continues
    jobs         N kills (200) per rule of a process of an MPI job with max_restarts
    asleep       N suspensions (10) of all processes of a run, for longer than its time limits

Each trial is a line of FILE. A second call with the same FILE continues where the first stopped, and N counts the
trials of both. Those that found no process to kill do not count. The command `table` prints the counts and the slopes
of FILE. A campaign may be spread over several machines: --first is the number of the first trial of a machine, and
--add adds the counts of another one. The checks of /dev/shm need a machine on which no other program uses it. The exit
status is 1 if a check of FILE has failed. results.csv of this folder is such a table.
"""

import argparse
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial

from experiments.endurance import asleep, conversion, jobs, saves, starts, steps
from experiments.endurance.analysis import as_csv, from_csv, lines, table, united
from experiments.endurance.journal import Journal, continue_trials

HERE = pathlib.Path(__file__).parent
TASKS = {"starts": starts, "saves": saves, "preprocess": conversion, "jobs": jobs, "asleep": asleep}
TRIAL = "trial"                                  # beginning of the name of a trial's folder


class OutOfTime(Exception):
    """The minutes of this call are over."""


@contextmanager
def place_of_trials(folder):
    """Yield a temporary folder. At its end only the folders of failed trials are kept, if there are any."""
    place = pathlib.Path(tempfile.mkdtemp(dir=folder))
    try:
        yield place
    finally:
        for path in place.iterdir():
            if not path.name.startswith(TRIAL):
                shutil.rmtree(path)
        if kept := sorted(path.name for path in place.iterdir()):
            print(f"{place} keeps the files of failed or interrupted trials: {', '.join(kept)}")
        else:
            place.rmdir()


def run(name, count, series, journal, folder, minutes=None, first=0):
    """Run the missing trials of a task, beginning with number `first`; return its rows."""
    deadline = None if minutes is None or name == "steps" else time.monotonic() + 60 * minutes

    def show(row):
        text = "; ".join(row["wrong"]) or "all checks passed"
        words = name, row["series"], row["number"], row["kind"], row["outcome"], f"{row['seconds']:.1f} s", text
        print(*(word for word in words if word != ""), flush=True)
        if deadline is not None and time.monotonic() > deadline:
            raise OutOfTime

    if name == "steps":
        count = count or steps.COUNT
        limit = steps.LIMIT if minutes is None else 60 * minutes
        chosen = {steps.series_of(count): (1, steps.prepare, partial(steps.trial, steps=count, limit=limit))}
    else:
        task = TASKS[name]
        chosen = dict.fromkeys(series or task.SERIES, (count or task.COUNT, task.prepare, task.trial))
    try:
        for each, (trials, prepare, trial) in chosen.items():
            with place_of_trials(folder) as place:
                continue_trials(journal, name, each, trials, partial(prepare, each, place), trial, show, first)
    except OutOfTime:
        print(f"{name}: stopped after {minutes:g} minutes")
    return journal.rows(name)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m experiments.endurance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=["steps", *TASKS, "table"], metavar="TASK")
    parser.add_argument("--count", type=int, metavar="N", help="trials of each series, or steps")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first trial of each series")
    parser.add_argument("--series", nargs="+", metavar="NAME", help="of jobs: rules; of asleep: kinds of runs")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="one line per trial")
    parser.add_argument("--csv", type=pathlib.Path, metavar="FILE", help="write the table as CSV")
    parser.add_argument("--add", type=pathlib.Path, metavar="CSV", help="table: add the counts of another table")
    parser.add_argument("--minutes", type=float, metavar="M",
                        help="end after the trial in which this time is over; steps: stop the training")
    parser.add_argument("--folder", type=pathlib.Path, help="for temporary files; those of failed trials are kept")
    options = parser.parse_args(arguments)
    # A shell ignores it in a command that it starts in the background, and programs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    journal = Journal(options.json)
    rows = journal.all
    if options.task != "table":
        rows = run(options.task, options.count, options.series, journal, options.folder, options.minutes,
                   options.first)
    found = lines(rows)
    if options.add:
        found = united(found, from_csv(options.add.read_text(encoding="utf-8")))
    print(table(found))
    if options.csv:
        options.csv.write_text(as_csv(found), encoding="utf-8")
    return int(any(line.failed for line in found))


if __name__ == "__main__":
    sys.exit(main())
