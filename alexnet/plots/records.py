"""Read the records of runs as arrays (epochs, hours, costs, errors, times), and their settings."""

import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.config import ConfigError, read_settings
from alexnet.native.console import note
from alexnet.run import checkpoint_format
from alexnet.run.recorder import FIELDS, LINES, Record, each_record
from alexnet.training.timing import SECTIONS as MEASURED

Columns = dict[str, np.ndarray]                  # field -> float64 (records,)
TEXT = ("kind", "at")                            # fields of a record that are no numbers
POINTS = 300                                     # maximum points of a training curve; more would show only noise
FEWEST_FOR_TOP5 = 20                             # classes; with fewer, the top-5 error is small for any network
REPORT = "report.safetensors"                    # in the folder of a run: what its report shows besides the records
# of the settings that the titles and the diagnosis use
TYPES = {"model": str, "data": str, "rule": str, "sync": str, "exchange": str, "classes": int, "n_epochs": int}
TICKS = {"epochs": "epoch", "hours": "hours"}    # x axis of the curves -> field with its values


class RecordedRun(NamedTuple):
    """The records of a run as columns. A null in a record, and a field that a record lacks, become NaN.

    In addition to the fields of the records, each kind has `hours`: the cumulative time of training and validation
    since the start of the run, including resumed runs. Saving and the time between runs are not included. Asynchronous
    workers have separate hours, and a validation has the hours of the worker with the most.
    """

    folder: Path
    name: str
    records: dict[str, Columns]                  # by kind; the kinds of recorder.FIELDS are always present
    settings: dict[str, Any]                     # of the folder's config.yaml; {} if it cannot be read
    classes: int | None = None                   # of the network; None if unknown

    @property
    def train(self) -> Columns:
        """The records of the steps."""
        return self.records["train"]

    @property
    def validation(self) -> Columns:
        """The records of the validations."""
        return self.records["validation"]

    @property
    def speed(self) -> Columns:
        """The records of the laps."""
        return self.records["speed"]

    @property
    def workers(self) -> int:
        """The number of workers: the largest in a lap, or the number of asynchronous workers; 0 if unknown."""
        return max(int(np.nan_to_num(self.speed["workers"]).max(initial=0)), asynchronous_workers(self.train))

    @property
    def shows_top5(self) -> bool:
        """Whether the network has enough classes for the top-5 error to be informative."""
        return self.classes is None or self.classes >= FEWEST_FOR_TOP5


def read_runs(folders: Iterable[str | Path]) -> list[RecordedRun]:
    """Read the runs in folders, without duplicates and with distinct names.

    Raises:
        FileNotFoundError: a folder has no records.
        ValueError: the records are damaged.
    """
    places = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    return [read_run(place, name) for place, name in zip(places, distinct_names(places), strict=True)]


def read_run(folder: str | Path, name: str | None = None) -> RecordedRun:
    """Read the run in a folder. Its name defaults to that of the folder."""
    folder = Path(folder).resolve()
    values = {kind: {field: array("d") for field in (*fields, "hours") if field not in TEXT}
              for kind, fields in FIELDS.items()}
    seconds: defaultdict[int | None, float] = defaultdict(float)                 # worker (None: all) -> seconds
    for record in each_record(folder):
        kind = record["kind"]
        worker = record.get("worker")
        worker = worker if isinstance(worker, int) else None
        if kind == "train" or (kind == "validation" and seconds.keys() <= {None}):
            seconds[worker] += number(record, "seconds", 0.0)
        passed = seconds[worker] if kind == "train" else max(seconds.values(), default=0.0)
        append(values.setdefault(kind, {}), record | {"hours": passed / 3600})
    records = {kind: {field: np.array(column) for field, column in columns.items()} for kind, columns in values.items()}
    return RecordedRun(folder, name or folder.name, records, settings_of(folder), classes_of(folder))


def append(columns: dict[str, array], record: Record) -> None:
    """Append the numbers of a record to its columns, and add the columns that do not exist yet."""
    n = len(columns["hours"]) if columns else 0
    for field in record:
        if field not in columns and field not in TEXT:
            columns[field] = array("d", [np.nan]) * n
    for field, column in columns.items():
        column.append(number(record, field, np.nan))


def asynchronous_workers(train: Columns) -> int:
    """Return the number of workers whose steps are recorded separately; 0 if the workers synchronise."""
    return len(np.unique(train["worker"][~np.isnan(train["worker"])]))


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run without those of a wrong type, or {} if they cannot be read."""
    path = folder / "config.yaml"
    try:
        settings = read_settings(path)
    except ConfigError as error:
        if path.exists():
            note(str(error))
        return {}
    return {name: value for name, value in settings.items() if isinstance(value, TYPES.get(name, object))}


def classes_of(folder: Path) -> int | None:
    """Return the number of classes of a run's network, from the report's data or a checkpoint; None if unknown."""
    for path in (folder / REPORT, *checkpoint_format.snapshots(folder)):
        with suppress(checkpoint_format.CheckpointError):
            _, metadata = checkpoint_format.load(path, lambda metadata: ())
            if isinstance(classes := metadata.get("classes"), int):
                return classes
    return None


def runs_among(paths: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """Return the run folders among paths, and the rest: files, and folders without records.

    Raises:
        FileNotFoundError: a path does not exist, or none is the folder of a run.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise FileNotFoundError(f"there is no run folder {path}")
    runs = [path for path in given if (path / LINES).is_file()]
    if not runs:
        raise FileNotFoundError(f"{given[0]} is no run's folder: it has no {LINES}")
    return runs, [path for path in given if path not in runs]


def title_of(run: RecordedRun) -> str:
    """Return the network, the data and the last result of a run: alexnet on synthetic, epoch 3: top-1 error 4.75%."""
    model, data = run.settings.get("model"), run.settings.get("data")
    what = f"{model} on {Path(str(data)).name}" if model and data else run.name
    errors = run.validation["top1_error"]
    if not errors.size:
        return what
    return f"{what}, epoch {run.validation['epoch'][-1]:.0f}: top-1 error {errors[-1]:.2%}"


def what_is_common(runs: Sequence[RecordedRun]) -> str:
    """Return a title for several runs: their network and data, as far as they have them in common."""
    models, folders = ({run.settings.get(key) for run in runs} for key in ("model", "data"))
    what = f"{len(runs)} runs"
    if len(models) == 1 and None not in models:
        what += f" of {models.pop()}"
    if len(folders) == 1 and None not in folders:
        what += f" on {Path(str(folders.pop())).name}"
    return what


def what_differs(runs: Sequence[RecordedRun]) -> dict[str, str]:
    """Return name -> description of the differences of a run.

    The description lists the rule, strategy and number of workers if the runs differ in them and the name of the run
    does not contain them.
    """
    properties = {run.name: (rule_of(run), strategy_of(run), workers_of(run)) for run in runs}
    common = {values[0] for values in zip(*properties.values(), strict=True) if len(set(values)) == 1}
    return {
        name: ", ".join(value for value in own if value and value not in common and value not in name)
        for name, own in properties.items()
    }


def rule_of(run: RecordedRun) -> str | None:
    """Return the rule of a run, such as gosgd; None if unknown. Rule bsp is named with its setting sync: bsp avg."""
    rule = run.settings.get("rule")
    return f"bsp {run.settings['sync']}" if rule == "bsp" and "sync" in run.settings else rule


def strategy_of(run: RecordedRun) -> str | None:
    """Return the exchange strategy of a run with rule bsp; None for other rules, and if the program has chosen it."""
    exchange = run.settings.get("exchange")
    return exchange if run.settings.get("rule") == "bsp" and exchange != "auto" else None


def workers_of(run: RecordedRun) -> str | None:
    """Return the number of workers of a run as text, or None if unknown."""
    return f"{run.workers} worker{'s' if run.workers > 1 else ''}" if run.workers else None


def number(record: Record, field: str, otherwise: float) -> float:
    """Return the number in a field of a record, or `otherwise` if there is none that a float can represent."""
    value = record.get(field)
    return value if isinstance(value, int | float) and abs(value) <= sys.float_info.max else otherwise


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return a distinct name for each of several different paths: the last part, or more parts for equal names."""
    names = [folder.name for folder in folders]
    length = 1
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(f.parts[-length:]) if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)]
    return names


def in_order(columns: Columns, field: str) -> Columns:
    """Sort records by a field, because the records of asynchronous workers are interleaved."""
    order = np.argsort(columns[field], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def averaged(columns: Mapping[str, np.ndarray], fields: Iterable[str], points: int) -> Columns:
    """Return field -> means over intervals of equal numbers of records, at most `points` of them."""
    n = len(columns["epoch"])
    stretch = max(1, -(-n // points))
    starts = np.arange(0, n, stretch)
    lengths = np.diff([*starts, n])
    return {field: np.add.reduceat(columns[field], starts) / lengths for field in fields}


def smoothed(
    train: Columns, x: str, field: str, scale: float = 1, points: int = POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, scale * field), averaged over intervals of equal numbers of records, at most `points` of them.

    For asynchronous workers, an interval has at least as many records as there are workers.
    """
    most = max(1, len(train[x]) // max(1, asynchronous_workers(train)))
    means = averaged(in_order(train, x), (x, field), min(points, most))
    return means[x], scale * means[field]


def of_one_worker(train: Columns) -> Columns:
    """Return the records of one worker if the workers are asynchronous, else all records.

    Asynchronous workers may change their learning rates at different times.
    """
    worker = train["worker"]
    first = ~np.isnan(worker) & (worker == np.nanmin(worker)) if not np.isnan(worker).all() else np.isnan(worker)
    return {name: column[first] for name, column in train.items()}


def rate_drops(train: Columns, x: str) -> list[tuple[float, float]]:
    """Return (place on axis x, new rate) of each drop of the learning rate to half or less."""
    train = of_one_worker(train)
    rate = train["learning_rate"]
    after = 1 + np.flatnonzero(rate[1:] <= rate[:-1] / 2)
    return list(zip(train[x][after - 1].tolist(), rate[after].tolist(), strict=True))


def with_other(records: Columns) -> Columns:
    """Add `other` to records: the time that no section has measured."""
    measured = sum(records[section] for section in MEASURED)
    return records | {"other": np.maximum(records["seconds"] - measured, 0)}
