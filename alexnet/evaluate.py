"""How well trained weights do on labelled images: top-1 and top-5 error and mean cost over all of them, in float64.

    counts = evaluate(network, labelled, Counts(classes))

The last, smaller batch counts as the others do.  Source: Krizhevsky et al. 2012, sections 4.1 and 6.
"""

from contextlib import closing

import numpy as np

from alexnet.augment import Crop, centre_crop, ten_crops

CROPS = (1, 10)                                  # the middle of an image; four corners, the middle, and their mirrors
BATCH_SIZE = 128                                 # images; more are not faster, and take more memory
TOGETHER = 128                                   # views of images that the network sees in one call, at most


class Counts:
    """What has been counted so far, for each class of the labels.

    images      int64 (classes,)
    right       {1: int64 (classes,), 5: ...}: images whose label is among the 1 or 5 most probable classes
    cost        float64 (classes,), the sum of -log p(label), in nats
    confusion   int64 (classes, classes), images of the row's class for which the column's is the most probable; or None
    bad         [(name, why)] of files that were passed over
    """

    def __init__(self, classes, confusion=False):
        self.images = np.zeros(classes, np.int64)
        self.right = {k: np.zeros(classes, np.int64) for k in (1, 5)}
        self.cost = np.zeros(classes)
        self.confusion = np.zeros((classes, classes), np.int64) if confusion else None
        self.bad = []

    def add(self, scores, labels):
        """Count a batch: scores float64 (class, batch), up to a constant log p(class); labels int (batch,)."""
        place = place_of_label(scores, labels)
        np.add.at(self.images, labels, 1)
        for k, right in self.right.items():
            np.add.at(right, labels, place < k)
        np.add.at(self.cost, labels, log_sum_exp(scores) - scores[labels, np.arange(len(labels))])
        if self.confusion is not None:
            np.add.at(self.confusion, (labels, scores.argmax(axis=0)), 1)

    @property
    def n(self):
        """Images counted."""
        return int(self.images.sum())

    def summary(self):
        """images, top1 and top5 {right, accuracy, error}, cost: over all images, a mapping for JSON."""
        return summary(self.n, {k: right.sum() for k, right in self.right.items()}, self.cost.sum())

    def per_class(self):
        """For each class the mapping of summary(); accuracy, error and cost are None where there is no image."""
        for label, images in enumerate(self.images):
            yield summary(images, {k: right[label] for k, right in self.right.items()}, self.cost[label])


def summary(images, right, cost):
    """Of a number of images, the right ones {k: count} and the sum of costs."""
    found = {"images": int(images)}
    for k, count in right.items():
        wrong = images - count
        found[f"top{k}"] = {"right": int(count), "accuracy": share(count, images), "error": share(wrong, images)}
    return found | {"cost": share(cost, images)}


def share(part, images):
    """part / images; None of no images."""
    return float(part / images) if images else None


def evaluate(network, labelled, counts, batch_size=BATCH_SIZE, crops=1, seen=lambda images: None):
    """Count a network's answers to all images of `labelled` (alexnet.labelled) in counts, which is returned.

    crops  of CROPS: with 10, the softmax's outputs for the ten are averaged
    seen   is told after each batch how many images it held, passed over or not

    Raises DataError or BadImage where the images cannot be read, ValueError where the outputs are not finite or no
    image is left.
    """
    with closing(labelled.batches(batch_size)) as batches:
        for images, labels, bad in batches:
            if len(labels):
                counts.add(scores_of(network, images, crops), labels)
            counts.bad += bad
            seen(len(labels) + len(bad))
    if not counts.n:
        name, why = counts.bad[0]
        raise ValueError(f"none of the {labelled.n:,} {labelled.name} can be used; the first, {name}, {why}")
    return counts


def scores_of(network, images, crops=1):
    """What a network says of images, uint8 (3, 256, 256, batch): float64 (class, batch), up to a constant log p(class).

    For one crop the logits, for ten the log of the mean of the ten softmaxes.  Raises ValueError for another number of
    crops, and where an output is not finite.
    """
    if crops not in CROPS:
        raise ValueError(f"crops must be 1 or 10, got {crops}")
    batch, size = images.shape[3], network.model.image_size
    views = ten_crops(batch, size) if crops == 10 else [centre_crop(batch, size)]
    step, logits = max(1, TOGETHER // batch), []
    for first in range(0, len(views), step):     # a small batch takes as long as one of the kernels' width
        group = views[first:first + step]
        crop = Crop(*map(np.concatenate, zip(*group, strict=True)))
        seen = np.tile(images, len(group)) if len(group) > 1 else images
        found = np.asarray(network.logits(seen, *crop), np.float64)
        logits += np.split(found, len(group), axis=1)
    if not np.isfinite(logits).all():
        raise ValueError("the network's outputs are not finite: its weights are damaged, or do not fit the mean image")
    if len(logits) == 1:
        return logits[0]
    return np.logaddexp.reduce([each - log_sum_exp(each) for each in logits]) - np.log(len(logits))


def place_of_label(scores, labels):
    """How many classes are ahead of the label: those of a larger score, and of an equal one those of lower class.

    The rule of alexnet.objectives.top_k_error.
    """
    own = scores[labels, np.arange(len(labels))]
    lower_class = np.arange(len(scores))[:, np.newaxis] < labels
    return ((scores > own) | ((scores == own) & lower_class)).sum(axis=0)


def log_sum_exp(scores):
    """log of the sum of exp(scores) over the classes, (batch,), whatever their size."""
    largest = scores.max(axis=0)
    return largest + np.log(np.exp(scores - largest).sum(axis=0))
