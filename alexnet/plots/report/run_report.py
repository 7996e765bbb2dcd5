"""The report and the pictures of a run that trains, rewritten after an epoch unless that takes too much time."""

import ctypes
import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.config import Config
from alexnet.data.dataset import Dataset
from alexnet.native import atomic
from alexnet.native.atomic import reason
from alexnet.plots.report import history
from alexnet.plots.report.history import FILTERS, History
from alexnet.plots.report.predictions import Predictions
from alexnet.training.base import Recorder
from alexnet.training.loop import Observer, Position

FIRST = 30.0                                     # seconds until pictures are drawn; matplotlib is imported in 0.5 s
SHARE = 0.02                                     # largest part of the training time that each of the two takes


class RunReport(Observer):
    """The report and the pictures of rank 0.

    report.html, the learning curves and the filters are rewritten at the end, and after epochs. Each reads the records
    of all steps, which takes longer as the run grows, so not after every epoch if the epochs are short.

    Args:
        folder: folder of the run.
        state: name -> shared variable of the network.
        data: with rank 0's shard of the validation images.
        position: where the run starts or resumes.
        config: settings of the run.
    """

    def __init__(
        self, folder: Path, state: Mapping[str, Any], data: Dataset, recorder: Recorder, position: Position,
        config: Config,
    ):
        self.folder = folder
        self._filters = state.get(FILTERS)
        self._data = data
        self._recorder = recorder
        self._steps = len(data.train.plan(config.batch_size))
        validation = data.validation.plan(config.images_at_once, keep_last=True)
        self._share = sum(len(labels) for _, labels in validation)
        self._predictions = self._new_predictions()
        self._written: Position | None = None
        self._drawn: Position | None = None
        self._page_due = recorder.clock()        # time from which on report.html is written again
        self._pictures_due = recorder.clock() + FIRST
        epochs = self._epochs(position)
        self.history = history.load(folder) if position.iteration else History()
        self.history.classes = data.classes
        self.history.class_names = None if data.class_names is None else list(data.class_names)
        self.history.truncate(epochs, position.iteration)
        if self._filters is not None and epochs not in self.history.filters:
            self.history.add_filters(epochs, self._filters.get_value(borrow=True))
        self._try(lambda: history.save(self.history, folder), "report.html was not written")

    def validation_began(self) -> None:
        """See Observer."""
        self._predictions = self._new_predictions()

    def validated(self, images: Any, labels: np.ndarray, logits: Any) -> None:
        """See Observer."""
        self._predictions.add(images, labels, logits)

    def epoch_ended(self, position: Position) -> None:
        """See Observer. Rewrites what is due."""
        if self._predictions.confusion.any():
            self.history.add_predictions(
                self._predictions, position.epoch, position.iteration, self._data.validation.n
            )
        self._predictions = self._new_predictions()
        self.write(position, page=self._recorder.clock() >= self._page_due)
        if self._recorder.clock() >= self._pictures_due:
            self.draw(position)

    def run_ended(self, position: Position) -> None:
        """See Observer. Rewrites the report and the pictures."""
        self.write(position)
        self.draw(position)

    def draw(self, position: Position) -> None:
        """Draw the learning curves and the filters of the first layer, unless they were drawn at this position."""
        if position != self._drawn:
            self._drawn = position
            self._try(self._draw, "the curves and filters cannot be drawn")

    def _draw(self) -> None:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would warn of an unwritable HOME with each run
        from alexnet.plots import drawing  # importing matplotlib would delay the first step by 0.4 s

        began = self._recorder.clock()
        drawing.learning_curves(self.folder)
        if self._filters is not None:
            place = self.folder / "filters.png"
            drawing.filters(self._filters.get_value(borrow=True), place, initial=self.history.initial)
        gc.collect()                             # figures are in reference cycles; each holds its pixels
        return_memory()
        self._pictures_due = self._after_a_share(began)

    def write(self, position: Position, page: bool = True) -> None:
        """Store what the report shows, and rewrite report.html, unless it was written at this position.

        A failure is a warning: training continues.

        Args:
            page: False: only store.
        """
        if position == self._written:
            return
        if self._filters is not None:
            self.history.add_filters(self._epochs(position), self._filters.get_value(borrow=True))
        self._try(lambda: self._write(page), "report.html was not written")
        self._written = position if page else None

    def _write(self, page: bool) -> None:
        began = self._recorder.clock()
        history.save(self.history, self.folder)
        if page:
            write_report(self.folder, self.history)
            return_memory()
            self._page_due = self._after_a_share(began)

    def _after_a_share(self, began: float) -> float:
        """Return the time until which the training has taken its share, after something that began at this time."""
        now = self._recorder.clock()
        return now + (now - began) / SHARE

    def _try(self, write: Callable[[], None], problem: str) -> None:
        """Call `write` outside the measured time. A full disk must not end the training here, but at its checkpoint."""
        with self._recorder.paused():
            try:
                write()
            except (OSError, ValueError) as error:          # ValueError: also CheckpointError
                self._recorder.warn(f"{problem}: {reason(error) if isinstance(error, OSError) else error}")

    def _new_predictions(self) -> Predictions:
        return Predictions(self._data.classes, self._share, self._data.mean)

    def _epochs(self, position: Position) -> float:
        return position.epoch + position.batch / self._steps


def return_memory() -> None:
    """Return freed memory to the system. glibc would keep what the records, which grow with the run, have taken."""
    with suppress(AttributeError):               # another C library
        ctypes.CDLL(None).malloc_trim(0)


def write_report(folder: str | Path, stored: History | None = None) -> Path:
    """Write report.html into the folder of a run; returns its path.

    Args:
        stored: the History of the run; None: read from the folder.

    Raises:
        FileNotFoundError: the folder has no records.
    """
    from alexnet.plots.report.page import page  # needed at the end of the first epoch, not before the first step

    folder = Path(folder)
    path = folder / "report.html"
    atomic.write(path, page(folder, stored or history.load_or_rebuild(folder)))
    return path
