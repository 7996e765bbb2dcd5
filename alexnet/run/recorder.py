"""Recording of a run: progress on the screen, log.txt, records.jsonl with one JSON object per record, and CSV tables.

The time of each iteration is split into calc, sync, comm and wait, as in upstream; see alexnet.training.timing.
records.jsonl is authoritative: the CSV files hold the same records as tables, and the curves are plotted from it. The
last field of each line is the CRC-32 of the JSON text without that field. A cost that is not finite is stored as null.
An event file for TensorBoard has the means over print_freq iterations and the validations.
"""

import csv
import io
import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from alexnet.data.progress import StatusLine, duration
from alexnet.native.atomic import naming, replacing
from alexnet.native.untrusted import InputError, checksum, parse_json
from alexnet.run.event_file import EventFile
from alexnet.training.base import Record, Recorder
from alexnet.training.diagnosis import STATISTICS
from alexnet.training.loop import Position
from alexnet.training.timing import LAP, SECTIONS, TIMES, Lap

# Kind of record, also the name of its CSV file -> fields. cost is in nats, errors are in [0, 1], times in seconds.
# worker: rank of the worker that ran the step, if workers do not synchronise, else null. speed: see Recorder.laps.
# Other kinds have the fields of their first record; see Recorder.record.
POSITION = ("iteration", "epoch", "learning_rate", "images")
FIELDS: dict[str, tuple[str, ...]] = {
    "train": (*POSITION, "cost", "top1_error", *TIMES, "worker", "at"),
    "validation": (*POSITION, "cost", "top1_error", "top5_error", "seconds", "at"),
    "speed": ("iteration", "epoch", "images", "workers", *TIMES, "slowest", "at"),
}
LINES = "records.jsonl"
SEAL = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\n\Z')          # end of a line
AVERAGED = ("cost", "top1_error", "images", "seconds", *SECTIONS)        # figures on the screen
REPAIR = "restore the file from a copy, or delete the line"
FORWARD = 1 / 3                                  # time of a validation batch in training steps, until it is measured


class Plan(NamedTuple):
    """What a run does, for the remaining time: epochs, steps of a worker in an epoch, batches of a validation."""

    n_epochs: int
    steps_of_epoch: int
    validation_batches: int


class RunRecorder(Recorder):
    """The recorder of rank 0: it writes the files of the run's folder and shows progress.

    Args:
        folder: folder of the run, created if it does not exist; new records are appended to existing ones. None: the
            log lines are kept until open().
        print_freq: iterations between two log lines, and the window of the displayed averages.
        total_iterations: of the whole run, for the remaining time; None if unknown.
        plan: of the run, for the number of epochs and the remaining time with validation; None if unknown.
        stream: where progress is printed, as a status line on a terminal, else as plain lines.
        clock: () -> seconds.
    """

    def __init__(
        self, folder: str | Path | None, print_freq: int = 20, total_iterations: int | None = None,
        stream: TextIO | None = None, clock: Callable[[], float] = time.perf_counter, plan: Plan | None = None,
    ):
        super().__init__(clock)
        self.plan = plan
        self.print_freq = print_freq
        self.total = total_iterations
        self.stream = stream or sys.stdout
        self.window: deque[Record] = deque(maxlen=print_freq)
        self.line = StatusLine(self.stream) if self.stream.isatty() else None
        self.validation_seconds: float | None = None     # of the last validation
        self.validations: list[Record] = []      # of the whole run
        self.folder = Path()                     # see open()
        self.text: TextIO = io.StringIO()
        self.lines: TextIO = io.StringIO()
        self.tables: dict[str, CsvTable] = {}
        self.events = EventFile(self.folder)     # opened by the first event
        self.on_record: Callable[[Record], None] | None = None       # receives each record after it is written
        if folder is not None:
            self.open(folder)

    def open(self, folder: str | Path) -> None:
        """Open the files in the folder of the run, and write the log lines so far."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.text
        self._open()
        if isinstance(before, io.StringIO):
            with self._keeping_failure(), naming(self.folder / "log.txt"):
                self.text.write(before.getvalue())
                self.text.flush()

    def _open(self) -> None:
        self.text = (self.folder / "log.txt").open("a", encoding="utf-8", errors="backslashreplace")
        self.lines = (self.folder / LINES).open("a", encoding="utf-8")
        self.tables = {kind: CsvTable(self.folder, kind, fields) for kind, fields in FIELDS.items()}
        self.events = EventFile(self.folder)

    def close(self) -> None:
        """Close the files and erase the status line. A new RunRecorder of the same folder can append more records."""
        tables = [table.close for table in self.tables.values()]
        for close in (self.text.close, self.lines.close, self.events.close, *tables):
            with self._keeping_failure():        # a full disk: closing writes what is left
                close()
        if self.line is not None:
            self.line.close()

    # ---- records

    def train_iteration(
        self, *, iteration: int, epoch: float, cost: float, error: float, learning_rate: float, images: int,
        times: Mapping[str, float] | None = None, worker: int | None = None,
    ) -> None:
        """See Recorder. Every print_freq iterations, a line is logged."""
        times = times or self.end_iteration(iteration, epoch, images)
        record: Record = {
            "iteration": iteration,
            "epoch": epoch,
            "cost": float(cost),
            "top1_error": float(error),
            "learning_rate": learning_rate,
            "images": images,
            **times,
            "worker": worker,
        }
        self._write("train", record)
        self.recorded = iteration
        self.window.append(record)
        if iteration % self.print_freq == 0:
            self._add_event(iteration, self._scalars())
            self.log(self._progress(), screen=self.line is None)
        self._show("training", epoch, 1 - (math.ceil(epoch) - epoch))

    def epoch(
        self, *, epoch: int, iteration: int, cost: float, top1_error: float, top5_error: float, learning_rate: float,
        images: int,
    ) -> None:
        """See Recorder. A line is logged."""
        seconds = self.validation_seconds = self.elapsed()
        record: Record = {
            "iteration": iteration,
            "epoch": epoch,
            "cost": float(cost),
            "top1_error": float(top1_error),
            "top5_error": float(top5_error),
            "learning_rate": learning_rate,
            "images": images,
            "seconds": seconds,
        }
        self._write("validation", record)
        self.validations.append(record)
        errors = {"validation/top1_error": top1_error, "validation/top5_error": top5_error}
        training = self._scalars() if self.window and iteration % self.print_freq else {}
        self._add_event(iteration, training | {"validation/cost": float(cost), **errors})
        self.log(
            f"epoch {epoch}: validation cost {cost:.4f}, top-1 error {top1_error:.2%}, top-5 error {top5_error:.2%} "
            f"({images} images in {seconds:.1f} s); learning rate {learning_rate:g}"
        )
        self.restart()

    def laps(self, laps: Sequence[Lap]) -> None:
        """See Recorder. A line is logged."""
        if not laps:
            return
        last = laps[0]
        n = len(laps)
        scaled = [{name: LAP / lap.images * getattr(lap, name) for name in TIMES} for lap in laps]
        mean = {name: sum(times[name] for times in scaled) / n for name in TIMES}
        position = {"iteration": last.iteration, "epoch": last.epoch, "images": last.images, "workers": n}
        self._write("speed", position | mean | {"slowest": max(times["seconds"] for times in scaled)})
        split = ", ".join(f"{section} {mean[section]:.2f}" for section in SECTIONS)
        if mean["hidden"]:
            split += f", and {mean['hidden']:.2f} of exchange hidden in calc"
        workers = f"{n} workers" if n > 1 else "1 worker"
        self.log(f"{LAP:,} images in {mean['seconds']:.2f} s: {split} ({workers})", screen=self.line is None)

    def record(self, kind: str, **values: float | None) -> None:
        """See Recorder. The CSV file of the kind is created with its first record."""
        if "iteration" not in values:
            raise ValueError(f"a record of kind {kind} must have an iteration, got {', '.join(values)}")
        if kind not in self.tables:
            self.tables[kind] = CsvTable(self.folder, kind, (*values, "at"))
        self._write(kind, values)
        if kind == STATISTICS:
            self._add_event(int(values["iteration"] or 0), by_statistic(values))

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        record = {"kind": kind, **finite(values), "at": now()}
        row = self.tables[kind].row(record)
        if self.failure:                         # after an incomplete line no record may follow
            return
        with self._keeping_failure(), naming(self.folder / LINES):
            self.lines.write(line_of(record))
            self.lines.flush()
        with self._keeping_failure(), naming(self.folder / f"{kind}.csv"):
            self.tables[kind].append(row)
        if self.on_record:
            self.on_record(record)

    def _add_event(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write scalars for TensorBoard."""
        with self._keeping_failure(), naming(self.folder / "events.out.tfevents"):
            self.events.add(iteration, scalars)

    @contextmanager
    def _keeping_failure(self) -> Iterator[None]:
        """Store the first OSError in `failure` instead of raising it, so that training can be saved before it ends."""
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error

    def truncate(self, iteration: int, epochs: int | None = None) -> None:
        """See Recorder. An incomplete last line of records.jsonl is removed, too."""
        kept = []
        kinds = set(FIELDS)
        for record in each_record(self.folder):
            kinds.add(record["kind"])
            counted = epochs is not None and record["kind"] == "validation"
            if record["epoch"] <= epochs if counted else record["iteration"] <= iteration:
                kept.append(record)
        self.close()
        self.validations = [record for record in kept if record["kind"] == "validation"]
        self.recorded = max((record["iteration"] for record in kept if record["kind"] == "train"), default=0)
        for kind in kinds:
            rewrite_table(self.folder, kind, [record for record in kept if record["kind"] == kind])
        with replacing(self.folder / LINES) as path, path.open("w", encoding="utf-8") as file:
            file.writelines(map(line_of, kept))
        self.window.clear()
        self._open()
        self.events.resume_after(iteration)

    def error_at(self, position: Position) -> float | None:
        """Return the top-1 validation error at a position between two epochs; None if there was no validation."""
        last = self.validations[-1] if self.validations and not position.batch else None
        at = None if last is None else (last["epoch"], last["iteration"])
        return last["top1_error"] if last and at == (position.epoch, position.iteration) else None

    # ---- the screen

    def warn(self, message: object) -> None:
        """See Recorder."""
        self.log(f"warning: {message}")

    def log(self, message: str, screen: bool = True) -> None:
        """Write a line with the time to log.txt, and print it without the time if `screen`."""
        with self._keeping_failure(), naming(self.folder / "log.txt"):
            self.text.write(f"{now()} {message}\n")
            self.text.flush()
        if screen and self.line is not None:
            self.line.write(message)
        elif screen:
            print(message, file=self.stream, flush=True)

    def _progress(self) -> str:
        """Return the log line for the last print_freq iterations."""
        last = self.window[-1]
        mean = self._means()
        times = ", ".join(f"{section} {20 * mean[section]:.2f}" for section in SECTIONS)
        total = ""
        left = ""
        if self.total:
            total = f" of {self.total}"
            left = f", {duration(self._seconds_left())} left"
        worker = "" if last["worker"] is None else f"worker {last['worker']}, "
        return (
            f"{worker}iteration {last['iteration']}{total}, epoch {last['epoch']:.2f}: {self._figures()} for the "
            f"loader; time per 20 iterations: {20 * mean['seconds']:.2f} s ({times}){left}"
        )

    def phase(self, name: str, share: float | None = None) -> None:
        """See Recorder."""
        if self.window:
            self._show(name, self.window[-1]["epoch"], share)

    def _show(self, phase: str, epoch: float, share: float | None) -> None:
        """Draw the status line.

        Args:
            epoch: completed epochs, may be fractional.
            share: the part of the phase that is done.
        """
        if self.line is None:
            return
        figures = [f"{duration(self._seconds_left(phase, share))} left"] if self.total else []
        total = f"/{self.plan.n_epochs}" if self.plan else ""
        self.line.show(f"epoch {max(1, math.ceil(epoch))}{total} {phase}", share, figures + self._figures().split(", "))

    def _seconds_left(self, phase: str = "training", share: float | None = None) -> float:
        """Return the estimated seconds until the end of the run, with the validations."""
        last = self.window[-1]["iteration"]
        step = self._means()["seconds"]
        total = self.total or last
        left = step * max(total - last, 0)
        if self.plan and self.plan.validation_batches:
            validation = self.validation_seconds or FORWARD * step * self.plan.validation_batches
            count: float = total // self.plan.steps_of_epoch - last // self.plan.steps_of_epoch
            if phase == "validation":            # the one that has begun
                count += 1 - (share or 0)
            left += count * validation
        return left

    def _figures(self) -> str:
        """Return cost, error, speed and the share of time spent waiting for the loader, as means."""
        mean = self._means()
        seconds = mean["seconds"] or math.inf
        return (
            f"cost {mean['cost']:.3f}, error {mean['top1_error']:.1%}, {mean['images'] / seconds:.1f} images/s, "
            f"{mean['wait'] / seconds:.1%} wait"
        )

    def _scalars(self) -> dict[str, float]:
        """Return tag -> value for TensorBoard: means over the last print_freq iterations."""
        mean = self._means()
        speed = mean["images"] / mean["seconds"] if mean["seconds"] else math.nan
        return {
            "train/cost": mean["cost"], "train/top1_error": mean["top1_error"],
            "train/learning_rate": self.window[-1]["learning_rate"], "train/images_per_second": speed,
            **{f"seconds_per_iteration/{section}": mean[section] for section in SECTIONS},
        }

    def _means(self) -> dict[str, float]:
        """Return the means over the last print_freq iterations."""
        return {field: sum(record[field] for record in self.window) / len(self.window) for field in AVERAGED}


class WorkerRecorder(Recorder):
    """The recorder of a worker other than rank 0. It measures time and prints warnings, but writes no files.

    Args:
        rank: rank of the worker.
        stream: where warnings are printed; None: standard output.
        clock: () -> seconds.
    """

    def __init__(self, rank: int, stream: TextIO | None = None, clock: Callable[[], float] = time.perf_counter):
        super().__init__(clock)
        self.rank = rank
        self.stream = stream or sys.stdout

    def log(self, message: str, screen: bool = True) -> None:
        """Do nothing: rank 0 logs the message."""

    def warn(self, message: object) -> None:
        """Print a warning with the worker's rank."""
        print(f"worker {self.rank}: warning: {message}", file=self.stream, flush=True)

    def train_iteration(self, *, iteration: int, epoch: float, images: int, **figures: Any) -> None:
        """Measure the iteration and pass its record to `keep`."""
        times = self.end_iteration(iteration, epoch, images)
        if self.keep:
            self.keep({"iteration": iteration, "epoch": epoch, "images": images, **figures, "times": times})

    def epoch(self, **record: Any) -> None:
        """Exclude the validation from the iteration times; rank 0 records it."""
        self.restart()

    def laps(self, laps: Sequence[Lap]) -> None:
        """Do nothing: rank 0 records the Laps."""

    def record(self, kind: str, **values: float | None) -> None:
        """Do nothing: only rank 0 has files."""

    def truncate(self, iteration: int, epochs: int | None = None) -> None:
        """Do nothing: rank 0 truncates the records."""


class CsvTable:
    """The CSV file of one kind of record, open for appending. A new file gets a header line.

    Args:
        folder: folder of the run.
        kind: kind of the records, and name of the file without its suffix.
        fields: columns of a new file.
    """

    def __init__(self, folder: Path, kind: str, fields: Iterable[str]):
        path = folder / f"{kind}.csv"
        header = header_of(path)
        self._kind = kind
        self._fields = FIELDS.get(kind) or header or tuple(fields)
        self._file = path.open("a", newline="", encoding="utf-8")
        self.close = self._file.close
        if not header:
            self.append(self._fields)

    def row(self, record: Record) -> list[Any]:
        """Return the row of a record.

        Raises:
            ValueError: the fields of the record differ from the columns.
        """
        if record.keys() - {"kind"} != set(self._fields):
            raise ValueError(
                f"a record of kind {self._kind} must have the fields {', '.join(self._fields)}, got {', '.join(record)}"
            )
        return [record[field] for field in self._fields]

    def append(self, row: Iterable[Any]) -> None:
        """Write a row, and flush it to the file."""
        csv.writer(self._file).writerow(row)
        self._file.flush()


def by_statistic(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return tag -> value for TensorBoard: gradient/conv1 for conv1.gradient, so that a group contains all layers."""
    scalars = {}
    for name, value in values.items():
        layer, _, statistic = name.rpartition(".")
        if layer and value is not None:
            scalars[f"{statistic}/{layer}"] = value
    return scalars


def rewrite_table(folder: Path, kind: str, records: Sequence[Record]) -> None:
    """Replace the CSV file of a kind of record; a field that an older record lacks is left empty."""
    path = folder / f"{kind}.csv"
    fields = FIELDS.get(kind) or header_of(path) or tuple(name for record in records[:1] for name in record)[1:]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([fields, *([record.get(field) for field in fields] for record in records)])


def header_of(path: Path) -> tuple[str, ...]:
    """Return the column names of a CSV file, or () if it does not exist or is empty."""
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(next(csv.reader(file), ()))


def read_records(folder: str | Path) -> list[Record]:
    """Return the records of a run folder, in order; see each_record."""
    return list(each_record(folder))


def each_record(folder: str | Path) -> Iterator[Record]:
    """Yield the records of a run folder, in order. An incomplete last line, left by a killed run, is skipped.

    Raises:
        FileNotFoundError: the folder is not the folder of a run.
        InputError: a line is damaged or not a record.
    """
    path = Path(folder) / LINES
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run's folder: it has no {path.name}")
    sealed = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"line {number} of {path}"
            seal = SEAL.search(line)
            if not line.endswith(b"\n"):
                if SEAL.search(line[:-1] + b"\n"):
                    raise InputError(f"{place} is damaged: it ends with {line[-1:]!r} instead of a line feed; {REPAIR}")
                return
            record = parsed(checked(line, seal, place) if seal else line, place)
            if sealed is None:
                sealed = bool(seal)              # versions before 2026-12 wrote no checksums
            elif sealed != bool(seal):
                raise InputError(f"{place} is damaged: {'only it has a' if seal else 'it has no'} CRC-32; {REPAIR}")
            yield record


def line_of(record: Record) -> str:
    """Return a record as a line of records.jsonl."""
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc32": "{checksum(text.encode())}"}}\n'


def checked(line: bytes, seal: re.Match[bytes], place: str) -> bytes:
    """Return the JSON text of a line without its CRC-32.

    Args:
        seal: the match of SEAL in the line.

    Raises:
        InputError: the line, described by `place`, has another CRC-32.
    """
    text = line[:seal.start()] + b"}"
    if checksum(text) != seal[1].decode():
        raise InputError(f"{place} is damaged: its CRC-32 is not {seal[1].decode()}; {REPAIR}")
    return text


def parsed(line: bytes, place: str) -> Record:
    """Parse a line of JSON into a record.

    Raises:
        InputError: the line, described by `place`, is not a record.
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        raise InputError(f"{place} is not a record of a run: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise InputError(f"{place} is not a record of a run: it has no kind")
    for field in ("iteration", "epoch") if record["kind"] in FIELDS else ("iteration",):
        if not is_number(record.get(field)):
            raise InputError(f"{place} is not a record of a run: its {field} is no number")
    return record


def is_number(value: object) -> bool:
    """Return whether a value of JSON is a number of at least 0 that a float can represent."""
    return isinstance(value, int | float) and 0 <= value <= sys.float_info.max


def finite(values: Mapping[str, Any]) -> Record:
    """Return `values` with None in place of every float that JSON cannot represent."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def now() -> str:
    """Return the local time as text."""
    return time.strftime("%Y-%m-%d %H:%M:%S")
