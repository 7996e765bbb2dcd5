"""What the report of a run shows besides its records, stored in report.safetensors: filters and predictions.

The first layer's filters are kept at initialisation, after epochs 1, 2, 4, 8 ..., and after the last epoch. The file
has the format of a checkpoint, with its checksums, and is never unpickled.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.plots.records import REPORT
from alexnet.plots.report.predictions import Example, Predictions, examples_of
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError

BASE64 = re.compile("[A-Za-z0-9+/]*=*")
FILTERS = "conv1.W"                     # the array with the filters of the first layer


@dataclass
class Validated:
    """The predictions of the last validation, or of rank 0's share of it."""

    epoch: int
    iteration: int
    images: int                         # that rank 0 has predicted
    total: int                          # images of the validation set
    confusion: np.ndarray               # int64 (classes, classes), by label (row) and most probable class
    sample: list[Example]
    worst: list[Example]


@dataclass
class History:
    """The filters over a run and the predictions of its last validation."""

    classes: int | None = None
    class_names: list[str] | None = None
    filters: dict[float, np.ndarray] = field(default_factory=dict)       # completed epochs -> (3, row, column, n)
    validated: Validated | None = None

    @property
    def initial(self) -> np.ndarray | None:
        """The filters before the first step, or None if they are unknown."""
        return self.filters.get(0)

    def add_filters(self, epochs: float, filters: np.ndarray) -> None:
        """Add the filters after `epochs` epochs, and remove those that are no longer the newest."""
        kept = {epoch: each for epoch, each in self.filters.items() if epoch < epochs and is_milestone(epoch)}
        self.filters = kept | {epochs: np.array(filters, np.float32)}

    def add_predictions(self, predictions: Predictions, epoch: int, iteration: int, total: int) -> None:
        """Replace the predictions by those of a validation."""
        confusion = predictions.confusion
        self.validated = Validated(
            epoch, iteration, int(confusion.sum()), total, confusion, predictions.sample, predictions.worst
        )

    def truncate(self, epochs: float, iteration: int) -> None:
        """Remove what a run has added after the checkpoint from which it is resumed."""
        self.filters = {epoch: each for epoch, each in self.filters.items() if epoch <= epochs}
        if self.validated and self.validated.iteration > iteration:
            self.validated = None


def is_milestone(epochs: float) -> bool:
    """Return whether the filters after this number of epochs are kept: 0, 1, 2, 4, 8 ..."""
    return epochs == int(epochs) and (int(epochs) & (int(epochs) - 1)) == 0


def save(history: History, folder: Path) -> None:
    """Write report.safetensors atomically. Raises CheckpointError if it cannot be written."""
    arrays = {f"filters_{index}": each for index, each in enumerate(history.filters.values())}
    metadata: dict[str, Any] = {
        "classes": history.classes, "class_names": history.class_names, "filters": list(history.filters),
    }
    if validated := history.validated:
        arrays["confusion"] = validated.confusion
        metadata["validated"] = {
            name: getattr(validated, name) for name in ("epoch", "iteration", "images", "total", "sample", "worst")
        }
    checkpoint_format.save(folder / REPORT, arrays, metadata)


def load(folder: Path) -> History:
    """Return the History of a run; an empty one if the run has none or it is damaged."""
    try:
        arrays, metadata = checkpoint_format.load(folder / REPORT)
        filters = {epochs: arrays[f"filters_{index}"] for index, epochs in enumerate(metadata["filters"])}
        validated = None
        if stored := metadata.get("validated"):
            examples = {name: examples_of(stored[name]) for name in ("sample", "worst")}
            validated = Validated(**(stored | examples), confusion=arrays["confusion"])
        history = History(metadata["classes"], metadata["class_names"], filters, validated)
        return history if has_types_of_save(history) else History()
    except (CheckpointError, KeyError, TypeError, ValueError):
        return History()


def has_types_of_save(history: History) -> bool:
    """Return whether the values in a History have the types and shapes that save() writes."""
    classes, names, validated = history.classes, history.class_names, history.validated
    return (
        (classes is None or is_count(classes))
        and (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)))
        and all(isinstance(epochs, int | float) and 0 <= epochs < math.inf for epochs in history.filters)
        and all(each.ndim == 4 and each.dtype == np.float32 and each.size for each in history.filters.values())
        and (validated is None or has_types_of_validation(validated))
    )


def has_types_of_validation(validated: Validated) -> bool:
    """Return whether the values of a validation have the right types and shapes."""
    counts = (validated.epoch, validated.iteration, validated.images, validated.total)
    rows = validated.confusion.shape[:1]
    return (
        all(map(is_count, counts))
        and validated.confusion.dtype == np.int64 and validated.confusion.shape == (*rows, *rows) and bool(rows)
        and all(is_example(each, rows[0]) for each in (*validated.sample, *validated.worst))
    )


def is_example(example: Example, classes: int) -> bool:
    """Return whether the label and the guesses of an Example are classes, and its other values of the right types."""
    labels = [example.label, *(label for label, _ in example.guesses)]
    numbers = [example.cost, *(probability for _, probability in example.guesses)]
    return (
        isinstance(example.jpeg, str) and BASE64.fullmatch(example.jpeg) is not None and bool(example.guesses)
        and all(isinstance(each, int | float) for each in numbers)
        and all(is_count(label) and label < classes for label in labels)
    )


def is_count(value: object) -> bool:
    """Return whether a value is a whole number of at least 0."""
    return isinstance(value, int) and 0 <= value < 1 << 63


def load_or_rebuild(folder: Path) -> History:
    """Return the History of a run; of an older run without one, the filters of its newest checkpoint."""
    stored = load(folder)
    if not stored.filters:
        with suppress(CheckpointError):
            found = checkpoint_format.load_latest(folder, lambda metadata: [FILTERS])
            if found and FILTERS in found[1]:
                position = found[2].get("position")
                position = position if isinstance(position, dict) else {}
                epoch, iteration = position.get("epoch", 0), position.get("iteration", 1)
                reached = (epoch if is_count(epoch) else 0) or (iteration if is_count(iteration) else 1)
                stored.filters = {reached: found[1][FILTERS]}
    return stored
