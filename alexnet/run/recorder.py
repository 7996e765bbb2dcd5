"""Recording of a run: progress on the screen, log.txt, records.jsonl with one JSON object per record, and CSV tables.

The time of each iteration is split into calc, sync, comm and wait, as in upstream; see alexnet.training.timing.
records.jsonl is authoritative: the CSV files hold the same records as tables, and the curves are plotted from it. A
cost that is not finite is stored as null.
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

from alexnet.training.timing import LAP, SECTIONS, TIMES, Stopwatch

# Kind of record, also the name of its CSV file -> fields. cost is in nats, errors are in [0, 1], times in seconds.
# worker: rank of the worker that ran the step, if workers do not synchronise, else null. speed: see Recorder.laps.
# push: of rule asgd, see Recorder.push.
POSITION = ("iteration", "epoch", "learning_rate", "images")
FIELDS = {
    "train": (*POSITION, "cost", "top1_error", *TIMES, "worker", "at"),
    "validation": (*POSITION, "cost", "top1_error", "top5_error", "seconds", "at"),
    "push": ("client", "iteration", "version", "staleness", "waiting", "serving", "bytes", "at"),
    "speed": ("iteration", "epoch", "images", "workers", *TIMES, "slowest", "at"),
}
RARE = {"push"}                         # kinds whose file is created with the first record
BAR = "{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Recorder(Stopwatch):
    """Writes the records of one run to its folder. A context manager that closes its files.

    Args:
        folder: folder of the run, created if it does not exist; new records are appended to existing ones.
        print_freq: iterations between two log lines, and the window of the displayed averages.
        total_iterations: of the whole run, for the remaining time; None if unknown.
        stream: where progress is printed, as a bar on a terminal, else as plain lines.
        clock: () -> seconds.
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
        """Open the CSV file of a kind of record. Writes the header if the file is new."""
        file = (self.folder / f"{kind}.csv").open("a", newline="", encoding="utf-8")
        if not file.tell():
            csv.writer(file).writerow(FIELDS[kind])
        return file

    def close(self):
        """Close the files and the bar. A new Recorder of the same folder can append more records."""
        for file in (self.text, self.lines, *self.tables.values()):
            file.close()
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    # ---- records

    def train_iteration(
        self, *, iteration, epoch, cost, error, learning_rate, images, times=None, worker=None
    ):
        """Record a finished step. All time since the previous iteration counts towards this one.

        Args:
            epoch: completed epochs, may be fractional: 1.5 is half of the second epoch.
            cost: of the batch, in nats.
            error: top-1 error of the batch, in [0, 1].
            images: images of all workers in this step.
            times: TIMES of the step, if another worker ran it without synchronising; None: measured by this recorder.
            worker: rank of that worker; None for a synchronised step.
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
        """Record a validation after `epoch` whole epochs. Cost and errors are means over `images` images."""
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
        """Record Laps that ended together, one for each known worker. An empty list records nothing.

        The recorded times are means over these workers, in seconds per 5,120 images; `slowest` is the slowest worker's.
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
        }
        self.write("speed", record)
        split = ", ".join(f"{section} {record[section]:.2f}" for section in SECTIONS)
        who = f"{n} workers" if n > 1 else "1 worker"
        self.log(f"{LAP:,} images in {record['seconds']:.2f} s: {split} ({who})", screen=not self.stream.isatty())

    def push(self, **record):
        """Record a push to a parameter server: multigpu.rules.parameter_server.center.PushRecord."""
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
        """Remove the records that a killed run wrote after the checkpoint of `iteration`, to keep curves continuous.

        Args:
            epochs: validations completed at the checkpoint; None keeps those up to its iteration.
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
        """Log a warning."""
        self.log(f"warning: {sentence}")

    def log(self, message, screen=True):
        """Write a line with the time to log.txt, and print it without the time if `screen`."""
        self.text.write(f"{now()} {message}\n")
        self.text.flush()
        if screen and self.bar is not None:
            self.bar.write(message, file=self.stream)
        elif screen:
            print(message, file=self.stream, flush=True)

    def progress(self):
        """Return the log line for the last print_freq iterations."""
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
        """Cost, error, speed and the share of time spent waiting for the loader, over the last print_freq iterations.

        The text is short because it must fit into 80 columns together with the bar.
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


class WorkerRecorder(Stopwatch):
    """The recorder of a worker other than worker 0. It measures time and prints warnings, but writes no files.

        rank    rank of the worker
        stream  where warnings are printed
        keep    None, or a callable that receives each train record as a dict, so that rank 0 can record the step of a
                worker that runs without synchronising, with Recorder.train_iteration(**record)
    """

    keep = None

    def __init__(self, rank, stream=None, clock=time.perf_counter):
        super().__init__(clock)
        self.rank, self.stream = rank, stream or sys.stdout

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Do nothing: no file is open."""

    def log(self, message, screen=True):
        """Do nothing: worker 0 logs the message."""

    def warn(self, sentence):
        """Print a warning with the worker's rank."""
        print(f"worker {self.rank}: warning: {sentence}", file=self.stream, flush=True)

    def train_iteration(self, *, iteration, epoch, images, **figures):
        """Measure the iteration as Recorder does, and pass the record to `keep` instead of writing it."""
        times = self.end_iteration(iteration, epoch, images)
        if self.keep:
            self.keep({"iteration": iteration, "epoch": epoch, "images": images, **figures, "times": times})

    def epoch(self, **record):
        """Exclude the validation from the iteration times; worker 0 records it."""
        self.restart()

    def laps(self, laps):
        """Do nothing: worker 0 records the Laps."""

    def truncate(self, iteration, epochs=None):
        """Do nothing: worker 0 truncates the records."""


def read_records(folder):
    """Return the records of a run folder, in order; see each_record."""
    return list(each_record(folder))


def each_record(folder):
    """Yield the records of a run folder, in order. An incomplete last line, left by a killed run, is skipped.

    Raises:
        FileNotFoundError: the folder is not the folder of a run.
        ValueError: a line is not a record.
    """
    path = Path(folder) / "records.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run's folder: it has no {path.name}")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.endswith("\n"):
                yield parsed(line, f"line {number} of {path}")


def parsed(line, place):
    """Parse a line of JSON into a record. Raises ValueError if it is not one."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not a record of a run: {error}") from error
    if not isinstance(record, dict) or "kind" not in record:
        raise ValueError(f"{place} is not a record of a run: it has no kind")
    return record


@contextmanager
def replacing(path):
    """Open a text file that replaces `path` if the block exits without an error."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        yield file
    os.replace(partial, path)


def finite(values):
    """Return `values` with None in place of every float that JSON cannot represent."""
    infinite = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    return values | dict.fromkeys(infinite)


def now():
    return time.strftime("%Y-%m-%d %H:%M:%S")
