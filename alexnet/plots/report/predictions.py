"""What a validation predicted: the confusion matrix, a sample of the images with five guesses, and the worst mistakes.

The logits are those of the validation itself, so no image is computed twice.
"""

import base64
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from alexnet.data.augment import IMAGE_SIZE

SAMPLE = 15                             # images shown after every epoch, always the same ones
WORST = 12                              # mistakes shown
GUESSES = 5
THUMBNAIL = 128                         # pixels of a shown image, half of IMAGE_SIZE


class Example(NamedTuple):
    """A validation image with its most probable classes."""

    jpeg: str                           # base64
    label: int
    guesses: list[tuple[int, float]]    # (class, probability), most probable first
    cost: float                         # -log of the label's probability, in nats

    @property
    def right(self) -> bool:
        """Whether the most probable class is the label."""
        return self.guesses[0][0] == self.label


class Predictions:
    """The predictions of one validation by this worker.

    Args:
        classes: number of classes.
        n: images that this worker validates.
        mean: float32 (3, 256, 256), which the loader has subtracted from float32 images.
    """

    def __init__(self, classes: int, n: int, mean: np.ndarray):
        self.confusion = np.zeros((classes, classes), np.int64)         # by label (row) and most probable class
        self.sample: list[Example] = []
        self.worst: list[Example] = []                                  # largest cost first
        self._mean = mean
        self._sampled = np.unique(np.linspace(0, n - 1, min(SAMPLE, n)).astype(int))
        self._seen = 0

    @np.errstate(invalid="ignore")               # the validation reports a cost that is not finite
    def add(self, images: Any, labels: np.ndarray, logits: Any) -> None:
        """Add a batch.

        Args:
            images: input of the network, uint8 (3, 256, 256, batch) or float32 (3, size, size, batch); may be stored on
                a device.
            labels: int32 (batch,).
            logits: float32 (class, batch); may be stored on a device.
        """
        logits = np.asarray(logits)
        best = logits.argmax(axis=0)
        np.add.at(self.confusion, (labels, best), 1)
        columns = np.arange(len(labels))
        top = logits[best, columns]
        costs = top + np.log(np.exp(logits - top).sum(axis=0)) - logits[labels, columns]
        wrong = np.flatnonzero(best != labels)
        least = self.worst[-1].cost if len(self.worst) == WORST else -np.inf
        worst = [i for i in wrong[np.argsort(-costs[wrong])][:WORST] if costs[i] > least]
        sampled = self._sampled[(self._sampled >= self._seen) & (self._sampled < self._seen + len(labels))] - self._seen
        self._seen += len(labels)
        if not worst and not len(sampled):
            return
        images = np.asarray(images)              # of a GPU: one copy
        shown = {i: self._example(images, int(labels[i]), logits[:, i], i) for i in {*worst, *sampled.tolist()}}
        self.sample += [shown[i] for i in sampled.tolist()]
        self.worst = sorted([*self.worst, *(shown[i] for i in worst)], key=lambda example: -example.cost)[:WORST]

    def _example(self, images: np.ndarray, label: int, logits: np.ndarray, index: int) -> Example:
        logits = logits.astype(float)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:GUESSES]
        cost = float(-np.log(max(probabilities[label], np.finfo(float).tiny)))
        guesses = [(int(each), float(probabilities[each])) for each in best]
        return Example(thumbnail(images[..., index], self._mean), label, guesses, cost)


def thumbnail(image: np.ndarray, mean: np.ndarray) -> str:
    """Return an input of the network, uint8 (3, 256, 256) or float32 without its mean, as a small JPEG in base64."""
    from alexnet.data.images import encoded  # importing Pillow would delay the first step

    if image.dtype != np.uint8:
        size = image.shape[1]
        first = (IMAGE_SIZE - size) // 2
        image = np.clip(image + mean[:, first:first + size, first:first + size], 0, 255).astype(np.uint8)
    return base64.b64encode(encoded(image.transpose(1, 2, 0), "JPEG", (THUMBNAIL, THUMBNAIL))).decode()


def examples_of(stored: Iterable[Any]) -> list[Example]:
    """Return Examples that were stored as lists."""
    return [Example(jpeg, label, [(k, p) for k, p in guesses], cost) for jpeg, label, guesses, cost in stored]
