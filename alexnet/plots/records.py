"""What runs recorded, as arrays: the epochs, the hours, costs, errors and times of each; and their settings."""

from array import array
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.config import ConfigError, read_settings
from alexnet.recorder import FIELDS, each_record

NUMBERS = {kind: [field for field in fields if field != "at"] for kind, fields in FIELDS.items()}
TICKS = {"epochs": "epoch", "hours": "hours"}    # what curves may run over -> the array that says it


class Run(NamedTuple):
    """The records of a run: field -> float64 array for each kind; NaN where the record has null.

    Besides the recorder's fields there are `hours`: since the run began, in training and validation, across all times
    that it was resumed; the time between them, or for saving, does not count.  Where workers go on without each other
    each has hours of its own, and validation those of the worker that has the most.
    settings: those in the folder's config.yaml, {} where there is none that can be read.
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
        """How many trained, as far as the records say: the most in a lap, or that took steps of their own; else 0."""
        apart = self.train["worker"][~np.isnan(self.train["worker"])]
        return max(int(self.speed["workers"].max(initial=0)), len(np.unique(apart)))


def read_runs(folders):
    """The Runs in folders, without repetition, with names that tell them apart.

    Raises FileNotFoundError for a folder without records, ValueError for damaged ones.
    """
    places = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    return [read_run(place, name) for place, name in zip(places, distinct_names(places), strict=True)]


def read_run(folder, name=None):
    """The Run in a folder; it is called as its folder, if not otherwise."""
    folder = Path(folder).resolve()
    values = {kind: {field: array("d") for field in fields} for kind, fields in NUMBERS.items()}
    hours, seconds = {kind: array("d") for kind in NUMBERS}, Counter()           # seconds of each worker, or of all
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
    """The settings that a run was started with, {} where they cannot be read."""
    try:
        return read_settings(folder / "config.yaml")
    except ConfigError:
        return {}


def what_differs(runs):
    """Name -> the rule, strategy and number of workers of a run, where the runs differ in it and its name is silent."""
    told = {run.name: {"rule": rule_of(run), "strategy": strategy_of(run), "workers": workers_of(run)} for run in runs}
    texts = {}
    for name, own in told.items():
        differing = [value for key, value in own.items() if len({other[key] for other in told.values()}) > 1]
        texts[name] = ", ".join(value for value in differing if value and value not in name)
    return texts


def rule_of(run):
    """bsp avg, bsp cdd, easgd or gosgd; None where nobody says."""
    rule = run.settings.get("rule")
    return f"bsp {run.settings['sync']}" if rule == "bsp" and "sync" in run.settings else rule


def strategy_of(run):
    """The strategy of a run of rule bsp, else None."""
    return run.settings.get("exchange") if run.settings.get("rule") == "bsp" else None


def workers_of(run):
    return f"{run.workers} worker{'s' if run.workers > 1 else ''}" if run.workers else None


def number(record, field, otherwise):
    value = record.get(field)
    return value if isinstance(value, int | float) else otherwise


def distinct_names(folders):
    """The last parts of different paths: so many, for those that end alike, as tell them apart."""
    names, length = [folder.name for folder in folders], 1
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(f.parts[-length:]) if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)]
    return names


def in_order(columns, field):
    """The records in the order of a field: those of workers that go on without each other lie mixed."""
    order = np.argsort(columns[field], kind="stable")
    return {name: column[order] for name, column in columns.items()}


def averaged(columns, fields, points):
    """Field -> means of equal stretches of records, at most `points` of them."""
    n = len(columns["epoch"])
    stretch = max(1, -(-n // points))
    starts = np.arange(0, n, stretch)
    lengths = np.diff([*starts, n])
    return {field: np.add.reduceat(columns[field], starts) / lengths for field in fields}
