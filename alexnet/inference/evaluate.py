"""Evaluate trained weights on labelled images: top-1 error, top-5 error and mean cost over all images, in float64.

    counts = evaluate(network, labelled, Counts(classes))

Every image has the same weight, including those of the smaller last batch.

Source: Krizhevsky et al. 2012, sections 4.1 and 6.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Protocol

import numpy as np

from alexnet.data.augment import Crop, centre_crop, ten_crops
from alexnet.inference.evaluation_data import LabelledImages
from alexnet.models import Model
from alexnet.training.network import Network

CROPS = (1, 10)                                  # 1: the centre; 10: the corners, the centre, and their mirror images
BATCH_SIZE = 128                                 # images; larger batches are not faster and need more memory
TOGETHER = 128                                   # maximum number of crops per call of the network


class Counts:
    """Results accumulated over the batches, per class of the labels.

    Attributes:
        images: int64 (classes,), number of images.
        right: {1: int64 (classes,), 5: ...}, number of images whose label is among the 1 or 5 most probable classes.
        cost: float64 (classes,), the sum of -log p(label), in nats.
        confusion: int64 (classes, classes), number of images by label (row) and most probable class (column); or None.
        bad: (name, reason) of each skipped file.
    """

    def __init__(self, classes: int, confusion: bool = False):
        self.images = np.zeros(classes, np.int64)
        self.right = {k: np.zeros(classes, np.int64) for k in (1, 5)}
        self.cost = np.zeros(classes)
        self.confusion = np.zeros((classes, classes), np.int64) if confusion else None
        self.bad: list[tuple[str, str]] = []

    def add(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch.

        Args:
            scores: float64 (class, batch), log p(class) up to a constant per image.
            labels: int (batch,).
        """
        place = place_of_label(scores, labels)
        np.add.at(self.images, labels, 1)
        for k, right in self.right.items():
            np.add.at(right, labels, place < k)
        np.add.at(self.cost, labels, log_sum_exp(scores) - scores[labels, np.arange(len(labels))])
        if self.confusion is not None:
            np.add.at(self.confusion, (labels, scores.argmax(axis=0)), 1)

    @property
    def n(self) -> int:
        """The number of images added."""
        return int(self.images.sum())

    def summary(self) -> dict[str, Any]:
        """Return the results over all images, as a mapping for JSON: images, top1, top5 and cost.

        top1 and top5 are mappings with right, accuracy and error.
        """
        return summary(self.n, {k: int(right.sum()) for k, right in self.right.items()}, float(self.cost.sum()))

    def per_class(self) -> Iterator[dict[str, Any]]:
        """Yield the mapping of summary() per class; accuracy, error and cost are None for a class without images."""
        for label, images in enumerate(self.images.tolist()):
            yield summary(images, {k: int(right[label]) for k, right in self.right.items()}, float(self.cost[label]))


def summary(images: int, right: dict[int, int], cost: float) -> dict[str, Any]:
    """Return the mapping of Counts.summary().

    Args:
        images: number of images.
        right: {k: number of images whose label is among the k most probable classes}.
        cost: sum of the costs.
    """
    found: dict[str, Any] = {"images": images}
    for k, count in right.items():
        wrong = images - count
        found[f"top{k}"] = {"right": count, "accuracy": share(count, images), "error": share(wrong, images)}
    return found | {"cost": share(cost, images)}


def share(part: float, images: int) -> float | None:
    """Return part / images, or None if there are no images."""
    return part / images if images else None


def evaluate(
    network: Network, labelled: LabelledImages, counts: Counts, batch_size: int = BATCH_SIZE, crops: int = 1,
    seen: Callable[[int], None] = lambda images: None,
) -> Counts:
    """Evaluate a network on all images of `labelled`, add the results to `counts`, and return `counts`.

    Args:
        crops: one of CROPS. With 10, the softmax outputs of the ten crops are averaged.
        seen: called after each batch with the number of its images, including skipped ones.

    Raises:
        DataError, BadImage: the images cannot be read.
        ValueError: the outputs are not finite, or all images were skipped.
    """
    with closing(labelled.batches(batch_size)) as batches:
        for images, labels, bad in batches:
            if len(labels):
                counts.add(scores_of(network, images, crops), labels)
            counts.bad += bad
            seen(len(labels) + len(bad))
    if not counts.n:
        name, reason = counts.bad[0]
        raise ValueError(f"none of the {labelled.n:,} {labelled.name} can be used; the first, {name}, {reason}")
    return counts


class Scorer(Protocol):
    """What scores_of needs of a Network: logits(images, *crop), and the size of the crops."""

    @property
    def model(self) -> Model: ...

    @property
    def logits(self) -> Callable[..., Any]: ...


def scores_of(network: Scorer, images: np.ndarray, crops: int = 1) -> np.ndarray:
    """Return the scores of a network: float64 (class, batch), log p(class) up to a constant per image.

    With one crop, the scores are the logits. With ten, they are the log of the mean of the ten softmax outputs.

    Args:
        images: uint8 (3, 256, 256, batch).
        crops: one of CROPS.

    Raises:
        ValueError: crops is not in CROPS, or an output is not finite.
    """
    if crops not in CROPS:
        raise ValueError(f"crops must be 1 or 10, got {crops}")
    batch = images.shape[3]
    size = network.model.image_size
    views = ten_crops(batch, size) if crops == 10 else [centre_crop(batch, size)]
    step = max(1, TOGETHER // batch)
    logits: list[np.ndarray] = []                # of each view: float64 (class, batch)
    for first in range(0, len(views), step):     # a batch below the width of the kernels takes as long as a full one
        group = views[first:first + step]
        crop = Crop(*map(np.concatenate, zip(*group, strict=True)))
        seen = np.tile(images, len(group)) if len(group) > 1 else images
        found = np.asarray(network.logits(seen, *crop), np.float64)
        logits += np.split(found, len(group), axis=1)
    if not np.isfinite(logits).all():
        raise ValueError("the network's outputs are not finite: its weights are damaged, or do not fit the mean image")
    if len(logits) == 1:
        return logits[0]
    summed = functools.reduce(np.logaddexp, [each - log_sum_exp(each) for each in logits])
    return summed - np.log(len(logits))


def place_of_label(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rank of the label of each image, (batch,): 0 if it is the most probable class.

    Ties rank the lower class first, as in alexnet.training.objectives.top_k_error.
    """
    own = scores[labels, np.arange(len(labels))]
    lower_class = np.arange(len(scores))[:, np.newaxis] < labels
    return ((scores > own) | ((scores == own) & lower_class)).sum(axis=0)


def log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """Return log(sum(exp(scores))) over the classes, (batch,), without overflow."""
    largest = scores.max(axis=0)
    return largest + np.log(np.exp(scores - largest).sum(axis=0))
