"""Compute cost, top-1 and top-5 of trained weights over one half of a data set, or over a folder of images.

OUT is one of: a data set written by preprocess or theano_alexnet; a folder with one subfolder of image files per class,
named by the wnid, the full class name or the label (0 to 999, as in ImageNetV2); a flat folder of images with the wnid
in each name, such as n01440764_10026.JPEG; ILSVRC's flat validation folder with its devkit.

--expect compares with a published accuracy. It evaluates a sample again with another resize method, number of crops,
mean image, colour order or scale, and prints which of them changes top-1 by how much.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from alexnet.commands._options import add_machine, add_weights, network_of, positive, weights_of
from alexnet.config import backend_of
from alexnet.data.batch_file import name_of
from alexnet.data.progress import Progress, duration
from alexnet.inference.evaluate import BATCH_SIZE, CROPS, Counts, evaluate
from alexnet.inference.evaluation_data import DatasetHalf, ImageFolder, LabelledImages, is_dataset
from alexnet.inference.gap import SAMPLE, Explanation, choices, explain
from alexnet.native import atomic
from alexnet.native.console import note
from alexnet.pretrained import Weights
from alexnet.pretrained.assumptions import input_line

SHOWN = 10                                       # bad images listed on the screen; the JSON file lists all


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_weights(parser)
    parser.add_argument("--data", required=True, metavar="OUT", help="data set, or folder of images")
    parser.add_argument("--half", choices=("validation", "train"), help="of a data set (validation)")
    parser.add_argument("--crops", type=int, choices=CROPS, default=1, help="1: the middle of each image; 10: the "
                        "paper's corners, middle, and their mirror images, probabilities averaged (%(default)s)")
    parser.add_argument("--limit", type=positive, metavar="N", help="number of images: the first of a data set, "
                        "a fixed sample of a folder")
    parser.add_argument("--batch-size", type=positive, default=BATCH_SIZE, metavar="N", help="images that the network "
                        "takes together (%(default)s)")
    parser.add_argument("--ground-truth", metavar="FILE", help="of a flat folder of images")
    parser.add_argument("--synsets", metavar="FILE", help="the devkit's meta.mat, or lines of id, wnid and words")
    parser.add_argument("--on-bad-image", choices=("fail", "skip"), help="of a folder (fail)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to FILE")
    parser.add_argument("--per-class", action="store_true", help="a table of the classes, on the screen and in FILE")
    parser.add_argument("--confusion", type=Path, metavar="FILE.csv", help="write the confusion matrix: "
                        "a row per class, a column per predicted class")
    parser.add_argument("--expect", type=percentage, metavar="TOP1", help="a published top-1 accuracy in percent, such "
                        "as 57.4: explain the gap to it")
    add_machine(parser)


def percentage(text: str) -> float:
    """Parse a command-line argument as an accuracy in percent."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 1 < value <= 100:
        raise argparse.ArgumentTypeError(f"must be an accuracy in percent, such as 57.4, got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    for file in filter(None, (options.json, options.confusion)):
        refuse_unwritable(file)
    weights = weights_of(options)
    labelled = labelled_of(options, weights)
    if weights.mean is None and labelled.mean is not None:
        weights = weights._replace(mean=labelled.mean)
        note(f"the weights come without a mean image; that of {name_of(options.data)} is subtracted")
    for text in labelled.notes:
        note(text)
    network = network_of(weights, options)
    counts = Counts(weights.classes, options.confusion is not None)
    began = time.monotonic()
    with closing(Progress("evaluate", labelled.n, sys.stderr)) as progress:
        evaluate(network, labelled, counts, options.batch_size, options.crops, progress.add)
    seconds = time.monotonic() - began
    explanation = None if options.expect is None else explained(options, weights, labelled, counts)
    write(EvaluationOutcome(options, weights, labelled, counts, seconds, explanation))
    return 0


def explained(
    options: argparse.Namespace, weights: Weights, labelled: LabelledImages, counts: Counts
) -> Explanation:
    """Return the Explanation of the gap to the expected accuracy."""
    network = network_of(weights, options, crop=False)
    total = min(labelled.n, SAMPLE) * len(choices(weights, labelled, options.crops))
    with closing(Progress("explain", total, sys.stderr)) as progress:
        return explain(network, weights, labelled, counts, options.expect, options.crops, options.batch_size,
                       progress.add)


def labelled_of(options: argparse.Namespace, weights: Weights) -> LabelledImages:
    """Return the images to evaluate on.

    Raises:
        DataError: the images cannot be used.
        ValueError: an option does not apply to this kind of images.
    """
    data = name_of(options.data)
    if is_dataset(options.data):
        for name in ("ground_truth", "synsets", "on_bad_image", "resize"):
            if getattr(options, name):
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is for a folder of images, and {data} is a data set of batch files")
        half = options.half or "validation"
        return DatasetHalf(options.data, weights.classes, weights.class_names, half, options.limit, weights.resize)
    if options.half:
        raise ValueError(f"--half {options.half} is for a data set of batch files, and {data} is a folder of images")
    return ImageFolder(
        options.data, weights.classes, weights.class_names, weights.resize, options.ground_truth, options.synsets,
        options.on_bad_image or "fail", options.limit,
    )


# ---- output


class EvaluationOutcome(NamedTuple):
    """The options, weights, images and results of an evaluation, and its duration in seconds."""

    options: argparse.Namespace
    weights: Weights
    labelled: LabelledImages
    counts: Counts
    seconds: float
    explanation: Explanation | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.weights.class_names or tuple(f"class {label}" for label in range(self.weights.classes))


def write(outcome: EvaluationOutcome) -> None:
    """Write the requested files, then print the tables, the most important last."""
    options = outcome.options
    counts = outcome.counts
    if options.confusion and counts.confusion is not None:
        with (
            atomic.replacing(options.confusion) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            write_confusion(file, counts.confusion, outcome.names)
    if options.json:
        atomic.write(options.json, json.dumps(results(outcome), indent=1) + "\n")
    if options.per_class:
        print("\n".join(class_lines(counts, outcome.names)), end="\n\n")
    print("\n".join(lines(outcome)))


def lines(outcome: EvaluationOutcome) -> Iterator[str]:
    """Yield the lines of the summary, which is printed last."""
    options, weights, labelled, counts, seconds, explanation = outcome
    found = counts.summary()
    n = counts.n
    crops = "the centre crop" if options.crops == 1 else f"{options.crops} crops"
    yield f"{weights.origin or weights.model}"
    yield input_line(weights._replace(resize=labelled.resize))
    yield f"on {n:,} {labelled.name}, {crops}"
    if counts.bad:
        first = "; ".join(f"{name} {reason}" for name, reason in counts.bad[:SHOWN])
        more = f"; and {len(counts.bad) - SHOWN:,} more" if len(counts.bad) > SHOWN else ""
        yield f"{len(counts.bad):,} bad images are left out: {first}{more}"
    for k in (1, 5):
        top = found[f"top{k}"]
        right = f"{top['right']:,} of {n:,} right"
        yield f"top-{k}  {100 * top['accuracy']:6.2f} %  {right}; error {100 * top['error']:.2f} %"
    yield f"cost   {found['cost']:6.4f} nats"
    yield f"time   {duration(seconds)}, {n / seconds:.0f} images/s"
    if explanation is not None:
        yield ""
        yield from explanation.lines()


def class_lines(counts: Counts, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table of classes."""
    width = len(f"{counts.n:,}")
    yield f"{'images':>{max(width, 6)}}  {'top-1':>7}  {'top-5':>7}  {'cost':>8}  class"
    for name, found in zip(names, counts.per_class(), strict=True):
        top1, top5, cost = found["top1"]["accuracy"], found["top5"]["accuracy"], found["cost"]
        figures = f"{'-':>7}  {'-':>7}  {'-':>8}" if cost is None else f"{top1:7.1%}  {top5:7.1%}  {cost:8.4f}"
        yield f"{found['images']:>{max(width, 6)},}  {figures}  {name}"


def results(outcome: EvaluationOutcome) -> dict[str, Any]:
    """Return all results as a mapping for JSON."""
    options, weights, labelled, counts, seconds, explanation = outcome
    found = {
        "weights": name_of(options.weights), "origin": weights.origin, "model": weights.model,
        "classes": weights.classes, "data": name_of(options.data), "half": labelled.half,
        "crops": options.crops, "limit": options.limit, "resize": labelled.resize, **counts.summary(),
        "skipped": [{"image": name, "reason": reason} for name, reason in counts.bad],
        "backend": backend_of(options.backend, options.device), "device": options.device,
        "precision": options.precision,
        "seconds": seconds, "images_per_second": counts.n / seconds,
    }
    if explanation is not None:
        found["expect"] = explanation.as_mapping()
    if options.per_class:
        named = zip(outcome.names, counts.per_class(), strict=True)
        found["per_class"] = [{"label": label, "name": name, **each} for label, (name, each) in enumerate(named)]
    return found


def write_confusion(file: TextIO, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Write the confusion matrix as CSV: one row per label, one column per predicted class."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["label", *names])
    table.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))


def refuse_unwritable(file: Path) -> None:
    """Raise ValueError if a file cannot be written, so that the error occurs before the evaluation."""
    if file.is_dir():
        raise ValueError(f"{name_of(file)} is a folder; pass the name of a file")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{name_of(file)} cannot be written: there is no folder {name_of(file.absolute().parent)}")
