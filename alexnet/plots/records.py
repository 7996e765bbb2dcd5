"""Read the records of runs as arrays (epochs, hours, costs, errors, times), and their settings."""

from array import array
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.config import ConfigError, read_settings
from alexnet.run.recorder import FIELDS, each_record

NUMBERS = {kind: [field for field in fields if field != "at"] for kind, fields in FIELDS.items()}
TICKS = {"epochs": "epoch", "hours": "hours"}    # x axis of the curves -> field with its values


class Run(NamedTuple):
    """The records of a run: for each kind, field -> float64 array. A null in a record becomes NaN.

    In addition to the fields of the recorder, each kind has `hours`: the cumulative time of training and validation
    since the start of the run, including resumed runs. Saving and the time between runs are not included. Asynchronous
    workers have separate hours, and a validation has the hours of the worker with the most.

    settings  the settings in the config.yaml of the folder; {} if it cannot be read
    """

    folder: Path
    name: str
    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    speed: dict[str, np.ndarray]
    push: dict[str, np.ndarray]
    settings: dict

    @property
    def workers(self):
        """The number of workers: the largest in a lap, or the number of asynchronous workers; 0 if unknown."""
        apart = self.train["worker"][~np.isnan(self.train["worker"])]
        return max(int(self.speed["workers"].max(initial=0)), len(np.unique(apart)))


def read_runs(folders):
    """Read the Runs in folders, without duplicates and with distinct names.

    Raises:
        FileNotFoundError: a folder has no records.
        ValueError: the records are damaged.
    """
    places = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    return [read_run(place, name) for place, name in zip(places, distinct_names(places), strict=True)]


def read_run(folder, name=None):
    """Read the Run in a folder. Its name defaults to that of the folder."""
    folder = Path(folder).resolve()
    values = {kind: {field: array("d") for field in fields} for kind, fields in NUMBERS.items()}
    hours, seconds = {kind: array("d") for kind in NUMBERS}, Counter()           # worker (None: all) -> seconds
    for record in each_record(folder):
        kind, worker = record["kind"], record.get("worker")
        if kind == "train" or (kind == "validation" and seconds.keys() <= {None}):
            seconds[worker] += number(record, "seconds", 0.0)
        passed = seconds[worker] if kind == "train" else max(seconds.values(), default=0.0)
        hours[kind].append(passed / 3600)
        for field, column in values[kind].items():
            column.append(number(record, field, np.nan))
    columns = {kind: {field: np.array(values[kind][field]) for field in values[kind]} for kind in values}
    for kind, column in hours.items():
        columns[kind]["hours"] = np.array(column)
    return Run(folder, name or folder.name, **columns, settings=settings_of(folder))


def settings_of(folder):
    """Return the settings of a run, or {} if they cannot be read."""
    try:
        return read_settings(folder / "config.yaml")
    except ConfigError:
        return {}


def what_differs(runs):
    """Return name -> description of the differences of a run.

    The description lists the rule, strategy and number of workers if the runs differ in them and the name of the run
    does not contain them.
    """
    told = {run.name: {"rule": rule_of(run), "strategy": strategy_of(run), "workers": workers_of(run)} for run in runs}
    texts = {}
    for name, own in told.items():
        differing = [value for key, value in own.items() if len({other[key] for other in told.values()}) > 1]
        texts[name] = ", ".join(value for value in differing if value and value not in name)
    return texts


def rule_of(run):
    """Return the rule of a run, such as bsp avg, bsp cdd, easgd or gosgd; None if unknown."""
    rule = run.settings.get("rule")
    return f"bsp {run.settings['sync']}" if rule == "bsp" and "sync" in run.settings else rule


def strategy_of(run):
    """Return the strategy of a run with rule bsp, else None."""
    return run.settings.get("exchange") if run.settings.get("rule") == "bsp" else None


def workers_of(run):
    return f"{run.workers} worker{'s' if run.workers > 1 else ''}" if run.workers else None


def number(record, field, otherwise):
    value = record.get(field)
    return value if isinstance(value, int | float) else otherwise


def distinct_names(folders):
    """Return a distinct name for each of several different paths: the last part, or more parts for equal names."""
    names, length = [folder.name for folder in folders], 1
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(f.parts[-length:]) if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)]
    return names


def in_order(columns, field):
    """Sort records by a field, because the records of asynchronous workers are interleaved."""
    order = np.argsort(columns[field], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def averaged(columns, fields, points):
    """Return field -> means over intervals of equal numbers of records, at most `points` of them."""
    n = len(columns["epoch"])
    stretch = max(1, -(-n // points))
    starts = np.arange(0, n, stretch)
    lengths = np.diff([*starts, n])
    return {field: np.add.reduceat(columns[field], starts) / lengths for field in fields}
