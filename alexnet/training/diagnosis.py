"""Finds out from the records of a run, while it trains, that it will fail, and why.

A Detector receives the records in order, and returns a Diagnosis as soon as one of these holds:

    stalled      the cost remains that of guessing, ln(classes), after the plateau at the beginning
    diverging    the cost is far above that of guessing, or steps change a layer by more than half of its norm
    dead         nearly all units of a layer output 0 for all images
    saturated    the network is certain of its guesses, and they are wrong
    loader       steps wait for images
    exchange     steps wait for other workers
    overfitting  the validation cost rises while the training cost falls
    unrelated    training images are learned, and validation images are guessed

The thresholds were chosen with the runs of experiments/diagnosis; docs/diagnosis.md has the rates of detections and of
false alarms.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

STATISTICS = "statistics"                        # kind of the records of alexnet.training.statistics
PLATEAU = 0.05                                   # of the run, in which a cost of ln(classes) is normal
SHORTEST, LONGEST = 100, 25_000                  # iterations of it
GUESSING = 0.98                                  # a cost above this part of ln(classes) is that of guessing
ABOVE = 1.5                                      # a cost above this multiple of ln(classes) diverges
WINDOW = 0.01                                    # of the run, over which costs are averaged
NARROW, WIDE = 10, 500                           # iterations of it
BEGUN = 3                                        # windows, before which a high cost is no alarm
LARGE_UPDATE = 0.5                               # of a layer's norm, in a step
SMALL_UPDATE = 2e-5                              # of the median layer
VANISHED = 1e-4                                  # gradient of a layer, divided by the largest of a layer
DEAD = 0.95                                      # share of a layer's units
CERTAIN = 0.9                                    # mean largest probability
WRONG = 0.5                                      # top-1 error of certain guesses
REPEATED = 2                                     # measurements or laps in a row
WAITING = 0.25                                   # share of a lap
EXCHANGING = 0.5                                 # share of a lap
RISEN = 1.1                                      # validation cost, divided by its minimum
EPOCHS = 3                                       # in a row, with a validation cost that has risen


NEEDED = {                                       # numbers that a record of a kind must have to be considered
    "train": ("top1_error", "learning_rate"), "validation": ("top1_error",),
    "speed": ("wait", "seconds", "sync", "comm", "workers"),
}
LARGEST_NUMBER = 1e300                           # larger ones, of a damaged record, overflow in a sum


class Diagnosis(NamedTuple):
    """Why a run will fail.

    cause      one of the names above
    iteration  at which it was found
    text       a sentence with the figures and a remedy
    """

    cause: str
    iteration: int
    text: str


def is_complete(record: Mapping[str, Any]) -> bool:
    """Return whether a record has the numbers of its kind; an older or a damaged record may lack some."""
    numbers = [record.get(field) for field in NEEDED.get(record["kind"], ())]
    if record["kind"] in ("train", "validation") and record.get("cost", math.nan) is not None:
        numbers.append(record.get("cost"))       # None: the cost is not finite
    return all(map(is_usual, numbers)) and (record["kind"] != "speed" or record["seconds"] > 0)


def is_usual(value: object) -> bool:
    """Return whether a value of a record is a number that can be added to others."""
    return isinstance(value, int | float) and abs(value) <= LARGEST_NUMBER


class Detector:
    """Finds causes of failure in the records of a run, each once.

    Args:
        classes: outputs of the network.
        iterations: of the whole run.
    """

    def __init__(self, classes: int, iterations: int):
        self._guessing = math.log(classes)
        self._chance = 1 - 1 / classes
        self._plateau = min(max(round(PLATEAU * iterations), SHORTEST), LONGEST)
        self._costs: deque[float] = deque(maxlen=min(max(round(WINDOW * iterations), NARROW), WIDE))
        self._errors: deque[float] = deque(maxlen=self._costs.maxlen)
        self._begun = False                      # whether a cost has been below that of guessing
        self._rate = 0.0
        self._statistics: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}
        self._validations: list[float] = []
        self._training: list[float] = []         # mean costs at the validations
        self._found: set[str] = set()

    def add(self, record: Mapping[str, Any]) -> list[Diagnosis]:
        """Return what the next record shows, without causes that were found before.

        Args:
            record: a line of records.jsonl, of any kind.
        """
        look = {
            "train": self._train, STATISTICS: self._measurement, "speed": self._speed, "validation": self._validation,
        }.get(record["kind"])
        found = []
        for cause, text in look(record) if look and is_complete(record) else ():
            if cause not in self._found:
                self._found.add(cause)
                found.append(Diagnosis(cause, record["iteration"], text))
        return found

    def _repeated(self, cause: str, holds: bool) -> bool:
        """Return whether a condition has held REPEATED times in a row."""
        self._in_a_row[cause] = self._in_a_row.get(cause, 0) + 1 if holds else 0
        return self._in_a_row[cause] >= REPEATED

    # ---- steps

    def _train(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if record["cost"] is None:               # it is not finite, and ends the run
            return
        self._costs.append(record["cost"])
        self._errors.append(record["top1_error"])
        self._rate = record["learning_rate"]
        if len(self._costs) < (self._costs.maxlen or 0):
            return
        cost = fmean(self._costs)
        self._begun |= cost < GUESSING * self._guessing
        if cost > ABOVE * self._guessing and record["iteration"] >= BEGUN * len(self._costs):
            yield "diverging", (
                f"the cost is {cost:.3f}, and guessing costs {self._guessing:.3f}: the training diverges; lower "
                f"learning_rate={self._rate:g}, or set clip_norm or warmup_epochs"
            )
        if record["iteration"] >= self._plateau and not self._begun:
            yield "stalled", self._why_stalled(record["iteration"])

    def _why_stalled(self, iteration: int) -> str:
        what = f"the cost is still that of guessing, {self._guessing:.3f}, after {iteration:,} iterations"
        updates = self._of_layers("update")
        gradients = self._of_layers("gradient")
        if not updates or not gradients:
            return f"{what}; raise or lower learning_rate={self._rate:g}, and check labels and initial weights"
        weakest, least = min(gradients.items(), key=lambda each: each[1])
        if least < VANISHED * max(gradients.values()):
            return (
                f"{what}, and nearly no gradient arrives at {weakest} (norm {least:.2g}): the initial weights are too "
                "small for this depth, or units are dead; use std=he in the layers of the model, or batch normalisation"
            )
        typical = median(updates.values())
        if typical < SMALL_UPDATE:
            return (
                f"{what}, and a step changes the median layer by only {typical:.1g} of its norm (0.001 is usual); "
                f"raise learning_rate={self._rate:g}"
            )
        return (
            f"{what}, although gradients and updates are of usual size: check that the labels belong to the images, "
            f"and try other values of learning_rate={self._rate:g}: python -m alexnet lr-find"
        )

    def _of_layers(self, what: str) -> dict[str, float]:
        """Return name of the layer -> its last statistic."""
        suffix = f".{what}"
        return {
            name.removesuffix(suffix): value for name, value in self._statistics.items() if name.endswith(suffix)
        }

    # ---- statistics

    def _measurement(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        self._statistics = {
            name: value for name, value in record.items() if isinstance(value, float) and is_usual(value)
        }
        dead = [layer for layer, share in self._of_layers("dead").items() if share >= DEAD]
        if self._repeated("dead", bool(dead)):
            share = self._of_layers("dead")[dead[0]]
            yield "dead", (
                f"{share:.0%} of the units of {dead[0]} output 0 for all images, so that they are not trained: lower "
                f"learning_rate={self._rate:g}, or start with smaller weights and biases of 0"
            )
        layer, update = max(self._of_layers("update").items(), key=lambda each: each[1], default=("", 0.0))
        if self._repeated("update", update > LARGE_UPDATE):
            yield "diverging", (
                f"a step changes the weights of {layer} by {update:.0%} of their norm (0.1 % is usual): the training "
                f"will diverge; lower learning_rate={self._rate:g}, or set clip_norm or warmup_epochs"
            )
        certain = self._statistics.get("confidence", 0.0) > CERTAIN and bool(self._errors)
        if self._repeated("saturated", certain and fmean(self._errors) > WRONG):
            yield "saturated", (
                f"the mean of the largest probabilities is {self._statistics['confidence']:.0%}, and "
                f"{fmean(self._errors):.0%} of the images are classified wrongly: the outputs of the last layer are "
                "too large; start it with smaller weights (std=0.01), or lower learning_rate"
            )

    # ---- times and validation

    def _speed(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        waiting = record["wait"] / record["seconds"]
        exchanging = (record["sync"] + record["comm"]) / record["seconds"]
        if self._repeated("loader", waiting > WAITING):
            yield "loader", (
                f"steps wait {waiting:.0%} of the time for images: put data on a local disk, leave para_load=true, and "
                "keep a core free for the loader"
            )
        if record["workers"] > 1 and self._repeated("exchange", exchanging > EXCHANGING):
            yield "exchange", (
                f"steps wait {exchanging:.0%} of the time for the exchange and for other workers: use a larger "
                "batch_size, exchange_what=gradients or factors, exchange=asa16, or rule=slowmo; docs/choosing.md"
            )

    def _validation(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if record["cost"] is None or not self._costs:
            return
        self._validations.append(record["cost"])
        self._training.append(fmean(self._costs))
        lowest = min(self._validations)
        recent = self._validations[-EPOCHS:]
        falls = len(self._training) > EPOCHS and self._training[-1] < self._training[-1 - EPOCHS]
        if len(recent) == EPOCHS and min(recent) > RISEN * lowest and falls:
            yield "overfitting", (
                f"the validation cost has risen from {lowest:.3f} to {record['cost']:.3f} while the training cost "
                "fell: the network memorises its images; more images, dropout_rate, weight_decay, or fewer epochs help "
                "(best.safetensors is the best checkpoint)"
            )
        learned = fmean(self._errors) < 0.7 * self._chance
        if len(self._validations) >= REPEATED and learned and record["top1_error"] > 0.95 * self._chance:
            yield "unrelated", (
                f"the training error is {fmean(self._errors):.0%}, and the validation error, "
                f"{record['top1_error']:.0%}, is that of guessing: check that the validation labels have the order of "
                "the training classes"
            )
