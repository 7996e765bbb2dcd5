"""What a run tells: a progress bar or lines on the screen, log.txt, one JSON line per record, and CSV.

Each iteration's time is split as upstream splits it, alexnet.stopwatch: calc, sync, comm and wait.  records.jsonl is
the one truth: the CSV files are the same records as tables, and the curves are drawn from it.  A cost that is not
finite is null there.
"""

import csv
import json
import math
import os
import sys
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from alexnet.stopwatch import LAP, SECTIONS, TIMES, Stopwatch

# kind of record, which is also the name of the CSV file -> fields: cost in nats, errors in [0, 1], times in seconds;
# worker: whose step it was, where workers go on without each other, else null; speed: see Recorder.laps; push: of rule
# asgd, see Recorder.push
POSITION = ("iteration", "epoch", "learning_rate", "images")
FIELDS = {
    "train": (*POSITION, "cost", "top1_error", *TIMES, "worker", "at"),
    "validation": (*POSITION, "cost", "top1_error", "top5_error", "seconds", "at"),
    "push": ("client", "iteration", "version", "staleness", "waiting", "serving", "bytes", "at"),
    "speed": ("iteration", "epoch", "images", "workers", *TIMES, "slowest", "at"),
}
RARE = {"push"}                         # kinds whose file is made with the first record
BAR = "{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Recorder(Stopwatch):
    """Records of one run, in its folder; a context manager that closes its files.

    folder            of the run, made if need be; existing records are added to
    print_freq        iterations between two lines, and the window of the averages shown
    total_iterations  of the whole run, for the time left; None where nobody knows
    stream            where the progress goes: a bar on a terminal, plain lines elsewhere
    clock             () -> seconds
    """

    def __init__(self, folder, print_freq=20, total_iterations=None, stream=None, clock=time.perf_counter):
        super().__init__(clock)
        self.folder, self.print_freq, self.total = Path(folder), print_freq, total_iterations
        self.stream = stream or sys.stdout
        self.folder.mkdir(parents=True, exist_ok=True)
        self.window = deque(maxlen=print_freq)
        self.bar = None
        self.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def open(self):
        self.text = (self.folder / "log.txt").open("a", encoding="utf-8")
        self.lines = (self.folder / "records.jsonl").open("a", encoding="utf-8")
        self.tables = {kind: self.table(kind) for kind in FIELDS if kind not in RARE}

    def table(self, kind):
        """The CSV file of a kind, open, with its head."""
        file = (self.folder / f"{kind}.csv").open("a", newline="", encoding="utf-8")
        if not file.tell():
            csv.writer(file).writerow(FIELDS[kind])
        return file

    def close(self):
        """Close the files and end the bar; more may be recorded by a new Recorder of the same folder."""
        for file in (self.text, self.lines, *self.tables.values()):
            file.close()
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    # ---- records

    def train_iteration(
        self, *, iteration, epoch, cost, error, learning_rate, images, times=None, worker=None
    ):
        """Record a finished step: `epoch` may be a fraction (1.5: half of the second), cost and error are the batch's.

        cost in nats, error (top-1) in [0, 1]; every time since the last iteration belongs to this one.
        images         of all workers
        times, worker  of a step that another worker has taken alone: its TIMES, and its number
        """
        times = times or self.end_iteration(iteration, epoch, images)
        record = {
            "iteration": iteration,
            "epoch": epoch,
            "cost": float(cost),
            "top1_error": float(error),
            "learning_rate": learning_rate,
            "images": images,
            **times,
            "worker": worker,
        }
        self.write("train", record)
        self.window.append(record)
        if iteration % self.print_freq == 0:
            self.log(self.progress(), screen=not self.stream.isatty())
        if self.stream.isatty():
            self.advance(iteration)

    def epoch(self, *, epoch, iteration, cost, top1_error, top5_error, learning_rate, images):
        """Record a validation after `epoch` whole epochs: means over `images` images."""
        record = {
            "iteration": iteration,
            "epoch": epoch,
            "cost": float(cost),
            "top1_error": float(top1_error),
            "top5_error": float(top5_error),
            "learning_rate": learning_rate,
            "images": images,
            "seconds": self.elapsed(),
        }
        self.write("validation", record)
        self.log(
            f"epoch {epoch}: validation cost {cost:.4f}, top-1 error {top1_error:.2%}, top-5 error {top5_error:.2%} "
            f"({images} images in {record['seconds']:.1f} s); learning rate {learning_rate:g}"
        )
        self.restart()

    def laps(self, laps):
        """Record Laps that ended together, one of each worker that is known of; none: nothing.

        Times are means over these workers, in seconds per 5,120 images; `slowest`: the slowest worker's.
        """
        if not laps:
            return
        last, n = laps[0], len(laps)
        scaled = [LAP / lap.images for lap in laps]
        record = {
            "iteration": last.iteration,
            "epoch": last.epoch,
            "images": last.images,
            "workers": n,
            **{name: sum(scale * getattr(lap, name) for scale, lap in zip(scaled, laps, strict=True)) / n
               for name in TIMES},
            "slowest": max(scale * lap.seconds for scale, lap in zip(scaled, laps, strict=True)),
        }  # fmt: skip
        self.write("speed", record)
        split = ", ".join(f"{section} {record[section]:.2f}" for section in SECTIONS)
        who = f"{n} workers" if n > 1 else "1 worker"
        self.log(f"{LAP:,} images in {record['seconds']:.2f} s: {split} ({who})", screen=not self.stream.isatty())

    def push(self, **record):
        """Record a push to a parameter server: multigpu.rules.parameter_server.Pushed."""
        if "push" not in self.tables:
            self.tables["push"] = self.table("push")
        self.write("push", record)

    def write(self, kind, values):
        record = {"kind": kind, **finite(values), "at": now()}
        self.lines.write(json.dumps(record, allow_nan=False) + "\n")
        csv.writer(self.tables[kind]).writerow(record[field] for field in FIELDS[kind])
        self.lines.flush()
        self.tables[kind].flush()

    def truncate(self, iteration, epochs=None):
        """Forget what a killed run recorded after the checkpoint of `iteration`, that the curves stay one line.

        epochs  validations done at the checkpoint; None: those up to its iteration
        """
        kept = []
        for record in read_records(self.folder):
            counted = epochs is not None and record["kind"] == "validation"
            if record["epoch"] <= epochs if counted else record["iteration"] <= iteration:
                kept.append(record)
        self.close()
        for kind, fields in FIELDS.items():
            if kind in RARE and not (self.folder / f"{kind}.csv").exists():
                continue
            rows = [[record.get(field) for field in fields] for record in kept if record["kind"] == kind]
            with replacing(self.folder / f"{kind}.csv") as file:
                csv.writer(file).writerows([fields, *rows])
        with replacing(self.folder / "records.jsonl") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self.window.clear()
        self.open()

    # ---- the screen

    def warn(self, sentence):
        """A warning, as a line like any other."""
        self.log(f"warning: {sentence}")

    def log(self, message, screen=True):
        """A line in log.txt with the time, and on the screen without it."""
        self.text.write(f"{now()} {message}\n")
        self.text.flush()
        if screen and self.bar is not None:
            self.bar.write(message, file=self.stream)
        elif screen:
            print(message, file=self.stream, flush=True)

    def progress(self):
        """The line of the last print_freq iterations."""
        last, mean = self.window[-1], self.means()
        times = ", ".join(f"{section} {20 * mean[section]:.2f}" for section in SECTIONS)
        total, left = "", ""
        if self.total:
            total = f" of {self.total}"
            left = f", {tqdm.format_interval(mean['seconds'] * (self.total - last['iteration']))} left"
        return (
            f"iteration {last['iteration']}{total}, epoch {last['epoch']:.2f}: {self.figures()} for the loader; "
            f"time per 20 iterations: {20 * mean['seconds']:.2f} s ({times}){left}"
        )

    def figures(self):
        """Cost, error, speed and the share of time waiting for the loader, over the last print_freq iterations.

        Short: with the bar it has to fit into 80 columns.
        """
        mean = self.means()
        seconds = mean["seconds"] or math.inf
        return (
            f"cost {mean['cost']:.3f}, error {mean['top1_error']:.1%}, {mean['images'] / seconds:.1f} images/s, "
            f"{mean['wait'] / seconds:.1%} wait"
        )

    def means(self):
        shown = ("cost", "top1_error", "images", "seconds", *SECTIONS)
        return {field: sum(record[field] for record in self.window) / len(self.window) for field in shown}

    def advance(self, iteration):
        if self.bar is None:
            begun = iteration - 1
            self.bar = tqdm(
                total=self.total, initial=begun, file=self.stream, bar_format=BAR, dynamic_ncols=True, leave=False
            )
        self.bar.set_postfix_str(self.figures(), refresh=False)
        self.bar.update(max(iteration - self.bar.n, 0))


class Silent(Stopwatch):
    """The recorder of a worker that neither prints nor saves, because worker 0 does: it measures, and tells warnings.

    rank    of the worker
    stream  where its warnings go
    keep    None, or what is called with each train record, a dict: Recorder.train_iteration(**record) at rank 0 records
            the step of a worker that goes on without the others
    """

    keep = None

    def __init__(self, rank, stream=None, clock=time.perf_counter):
        super().__init__(clock)
        self.rank, self.stream = rank, stream or sys.stdout

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """There is nothing to close."""

    def log(self, message, screen=True):
        """Worker 0 says it."""

    def warn(self, sentence):
        """A warning, with the worker's name."""
        print(f"worker {self.rank}: warning: {sentence}", file=self.stream, flush=True)

    def train_iteration(self, *, iteration, epoch, images, **figures):
        """As Recorder's, but that worker 0 records it."""
        times = self.end_iteration(iteration, epoch, images)
        if self.keep:
            self.keep({"iteration": iteration, "epoch": epoch, "images": images, **figures, "times": times})

    def epoch(self, **record):
        """Worker 0 records it; what it took counts as no iteration's."""
        self.restart()

    def laps(self, laps):
        """Worker 0 records them."""

    def truncate(self, iteration, epochs=None):
        """See laps."""


def read_records(folder):
    """The records of a run folder, in order: see each_record."""
    return list(each_record(folder))


def each_record(folder):
    """Yield the records of a run folder, in order; a last line that a kill cut short is left out.

    Raises FileNotFoundError when the folder is no run's, ValueError when a line is no record.
    """
    path = Path(folder) / "records.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run's folder: it has no {path.name}")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.endswith("\n"):
                yield parsed(line, f"line {number} of {path}")


def parsed(line, place):
    """The record that a line of JSON holds."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is no record of a run: {error}") from error
    if not isinstance(record, dict) or "kind" not in record:
        raise ValueError(f"{place} is no record of a run: it says no kind")
    return record


@contextmanager
def replacing(path):
    """A text file that takes the place of `path` when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        yield file
    os.replace(partial, path)


def finite(values):
    """`values` with None for every float that JSON cannot say."""
    infinite = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    return values | dict.fromkeys(infinite)


def now():
    return time.strftime("%Y-%m-%d %H:%M:%S")
