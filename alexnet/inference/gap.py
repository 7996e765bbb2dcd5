"""Explain a gap between the top-1 accuracy of an evaluation and a published one.

    print("\\n".join(explain(network, weights, labelled, counts, expected=57.4, crops=1).lines()))

A sample of the images is evaluated again with one choice changed at a time: resize method, crops, mean image, colour
order, scale. The change in accuracy on the same images has a small standard error, because both results share the
images:

    change = (b - c) / n        standard error = sqrt(b + c - (b - c)^2 / n) / n

b images are right only after the change, c only before it, of n.

Source: McNemar 1947, Psychometrika 12; its variance of the difference of paired proportions.
"""

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from alexnet.data.augment import RESIZES, Crop, crop_batch
from alexnet.inference.evaluate import Counts, place_of_label, scores_of
from alexnet.inference.evaluation_data import ImageFolder, LabelledImages
from alexnet.pretrained import Weights
from alexnet.pretrained.preprocessing import constant_image, torchvision_mean, torchvision_scale
from alexnet.training.network import Network

SAMPLE = 500                                     # images; a change of 4 points has a standard error of about 1
SAMPLE_BATCH = 25                                # images read together: a sample of a data set is spread over it
SURE = 2                                         # standard errors that a change must exceed to be certain
NEGLIGIBLE = 0.3                                 # percentage points, a gap between two decoders or interpolations
PIXEL_MEAN = (123.68, 116.78, 103.94)            # ImageNet's, RGB: Simonyan and Zisserman 2014


class Choice(NamedTuple):
    """How images are prepared, different from an evaluation in one thing.

    Attributes:
        name: what differs, for the user.
        cure: what the user can do if this is the cause.
        mean: float32 (3, 256, 256), subtracted from the images.
        resize: one of RESIZES.
        crops: 1 or 10.
        reverse: whether the images are BGR.
        factor: float32 (3, 1, 1, 1), of each channel after the mean is subtracted.
    """

    name: str
    cure: str
    mean: np.ndarray
    resize: str
    crops: int
    reverse: bool = False
    factor: np.ndarray | None = None


class Effect(NamedTuple):
    """The effect of a choice on the sample: accuracy, its change and the change's standard error, in percent."""

    choice: Choice
    accuracy: float
    change: float
    error: float

    @property
    def is_sure(self) -> bool:
        """Whether the change exceeds SURE standard errors."""
        return abs(self.change) > SURE * self.error


class Explanation(NamedTuple):
    """Which choices change the top-1 accuracy by how much.

    Attributes:
        expected, found: top-1 accuracy in percent, published and of the evaluation.
        images: number of images of the evaluation.
        sampled: number of images of the sample.
        accuracy: top-1 accuracy of the sample, prepared as in the evaluation, in percent.
        effects: of each choice.
    """

    expected: float
    found: float
    images: int
    sampled: int
    accuracy: float
    effects: tuple[Effect, ...]

    @property
    def gap(self) -> float:
        """The expected minus the found accuracy, in percentage points."""
        return self.expected - self.found

    @property
    def sampling_error(self) -> float:
        """The standard error of the found accuracy, in percentage points."""
        p = (self.expected + self.found) / 200
        return 100 * sqrt(p * (1 - p) / self.images)

    @property
    def likeliest(self) -> Effect | None:
        """The effect that leaves the smallest gap, if it closes half of it, or all of it within its standard error."""
        if abs(self.gap) < NEGLIGIBLE:
            return None
        left = [(abs(self.gap - each.change), each) for each in self.effects if each.change * self.gap > 0]
        closing = [(gap, each) for gap, each in left
                   if gap < abs(self.gap) / 2 or (each.is_sure and gap < SURE * each.error)]
        return min(closing, key=lambda pair: pair[0])[1] if closing else None

    def lines(self) -> Iterator[str]:
        """Yield the explanation as lines of text."""
        relation = "below" if self.gap > 0 else "above"
        yield f"top-1 is {abs(self.gap):.2f} points {relation} the expected {self.expected:.2f} %"
        yield f"top-1 of {self.sampled:,} images with one choice changed, and the change with its standard error:"
        yield f"  {self.accuracy:6.2f} %                   as evaluated"
        for effect in sorted(self.effects, key=lambda effect: abs(self.gap - effect.change)):
            yield (f"  {effect.accuracy:6.2f} %  {effect.change:+6.2f} ± {effect.error:5.2f}   {effect.choice.name}")
        yield from self.conclusion()

    def conclusion(self) -> Iterator[str]:
        """Yield the likeliest cause and how sure it is."""
        if abs(self.gap) < NEGLIGIBLE:
            yield "the gap needs no cause: decoders and rounding change an accuracy by as much"
            return
        if abs(self.gap) <= SURE * self.sampling_error:
            yield (f"if the expected accuracy is that of other images, {self.images:,} images are too few to decide: "
                   f"their standard error is {self.sampling_error:.2f} points")
        if self.likeliest is None:
            yield ("none of these choices closes the gap: compare the order of the classes, the epoch of the weights, "
                   "and the published test method")
            return
        yield f"likeliest cause: {self.likeliest.choice.name}; {self.likeliest.choice.cure}"
        if not self.likeliest.is_sure:
            yield f"this is uncertain: its change is less than {SURE} standard errors"

    def as_mapping(self) -> dict[str, Any]:
        """Return the explanation as a mapping for JSON; accuracies and changes in percent."""
        return {
            "expected": self.expected, "found": self.found, "gap": self.gap, "sampled": self.sampled,
            "accuracy": self.accuracy,
            "choices": [{"name": each.choice.name, "accuracy": each.accuracy, "change": each.change,
                         "standard_error": each.error} for each in self.effects],
            "likeliest": self.likeliest.choice.name if self.likeliest else None,
        }


class PreparedNetwork:
    """A network for cropped float32 images, which prepares uint8 images as a choice states.

    Args:
        network: a Network built with crop=False.
    """

    def __init__(self, network: Network, choice: Choice):
        self.model = network.model
        self.network = network
        self.choice = choice

    def logits(self, images: np.ndarray, *crop: np.ndarray) -> np.ndarray:
        """Return the logits (class, batch) of images, uint8 (3, 256, 256, batch), for a Crop."""
        size = self.model.image_size
        pixels = np.empty((3, size, size, images.shape[3]), np.float32)
        ordered = np.ascontiguousarray(images[::-1]) if self.choice.reverse else images
        crop_batch(ordered, self.choice.mean, Crop(*crop), pixels)
        if self.choice.factor is not None:
            pixels *= self.choice.factor
        return np.asarray(self.network.logits(pixels))


def explain(
    network: Network, weights: Weights, labelled: LabelledImages, counts: Counts, expected: float, crops: int,
    batch_size: int, seen: Callable[[int], None] = lambda images: None,
) -> Explanation:
    """Evaluate a sample of `labelled` with one choice changed at a time.

    Args:
        network: a Network of the weights, built with crop=False.
        counts: results of the evaluation.
        expected: published top-1 accuracy in percent.
        crops: number of crops of the evaluation.
        seen: called after each batch with its number of images.
    """
    base, *others = choices(weights, labelled, crops)
    sample = labelled.sample(SAMPLE) if labelled.n > SAMPLE else labelled
    pixels = {labelled.resize: Sample.read(sample)}

    def right(choice: Choice) -> np.ndarray:
        if choice.resize not in pixels and isinstance(sample, ImageFolder):
            pixels[choice.resize] = Sample.read(sample.resized(choice.resize))
        return pixels[choice.resize].right(PreparedNetwork(network, choice), choice.crops, batch_size, seen)

    before = right(base)
    top1 = counts.summary()["top1"]["accuracy"]
    effects = tuple(effect_of(choice, before, right(choice)) for choice in others)
    return Explanation(expected, 100 * top1, counts.n, len(before), 100 * float(before.mean()), effects)


class Sample(NamedTuple):
    """Images in memory, uint8 (3, 256, 256, images), and their labels, int32 (images,)."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def read(cls, labelled: LabelledImages) -> "Sample":
        """Read all images of `labelled`."""
        batches = [batch for batch in labelled.batches(SAMPLE_BATCH) if len(batch.labels)]
        images = np.concatenate([batch.images for batch in batches], axis=3)
        return cls(images, np.concatenate([batch.labels for batch in batches]))

    def right(
        self, network: PreparedNetwork, crops: int, batch_size: int, seen: Callable[[int], None]
    ) -> np.ndarray:
        """Return whether the most probable class of each image is its label, bool (images,)."""
        found = []
        for first in range(0, len(self.labels), batch_size):
            batch = slice(first, first + batch_size)
            scores = scores_of(network, np.ascontiguousarray(self.images[..., batch]), crops)
            found.append(place_of_label(scores, self.labels[batch]) == 0)
            seen(len(self.labels[batch]))
        return np.concatenate(found)


def effect_of(choice: Choice, before: np.ndarray, after: np.ndarray) -> Effect:
    """Return the Effect of a choice from which images are right before and after it, bool (images,)."""
    n = len(before)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    error = sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return Effect(choice, 100 * float(after.mean()), 100 * (gained - lost) / n, 100 * error)


def choices(weights: Weights, labelled: LabelledImages, crops: int) -> list[Choice]:
    """Return the Choice of an evaluation, then others that differ from it in one thing each."""
    assert weights.mean is not None, "a network is built only for weights with a mean image"
    base = Choice("as evaluated", "", weights.mean, labelled.resize, crops)
    other_crops = 10 if crops == 1 else 1
    many = base._replace(name=f"crops: {other_crops} instead of {crops}", cure=f"try --crops {other_crops}",
                         crops=other_crops)
    return [base, *resize_choices(base, labelled), many, *mean_choices(base, labelled),
            *colour_choices(base, weights.scale)]


def resize_choices(base: Choice, labelled: LabelledImages) -> Iterator[Choice]:
    """Yield the other resize methods; none for a data set, whose images are already resized."""
    for resize in RESIZES:
        if isinstance(labelled, ImageFolder) and resize != base.resize:
            yield base._replace(name=f"resize: {resize} instead of {base.resize}", cure=f"try --resize {resize}",
                                resize=resize)


def mean_choices(base: Choice, labelled: LabelledImages) -> Iterator[Choice]:
    """Yield other mean images: reversed, one value per channel, ImageNet's, that of the data, none."""
    channels = base.mean.mean(axis=(1, 2))
    if np.ptp(channels) > 1:
        yield base._replace(name="mean: its channels in the reverse order", mean=base.mean[::-1].copy(),
                            cure="pass the mean image with --mean FILE --mean-order bgr")
    if np.ptp(base.mean, axis=(1, 2)).max() > 1:
        yield base._replace(name="mean: one value per channel instead of an image", mean=constant_image(channels),
                            cure="pass such a mean image with --mean FILE")
    if np.abs(channels - np.array(PIXEL_MEAN)).max() > 3:
        values = ", ".join(f"{value:.0f}" for value in PIXEL_MEAN)
        yield base._replace(name=f"mean: ImageNet's, RGB {values}", mean=constant_image(PIXEL_MEAN),
                            cure="pass the mean image of the training with --mean FILE")
    if labelled.mean is not None and np.abs(labelled.mean - base.mean).max() > 1:
        yield base._replace(name="mean: that of the data set", mean=labelled.mean,
                            cure="pass misc/img_mean.npy of the data set with --mean")
    if base.mean.max() > 1:
        yield base._replace(name="mean: none is subtracted", mean=np.zeros_like(base.mean),
                            cure="pass a mean image of zeros with --mean FILE")


def colour_choices(base: Choice, scale: tuple[float, float, float]) -> Iterator[Choice]:
    """Yield other colours and scales of the network's input, which is multiplied by `scale` per channel."""
    cure = "the weights seem to take BGR images: convert the channels of their first layer to RGB"
    if np.ptp(base.mean.mean(axis=(1, 2))) > 1:
        yield base._replace(name="colours: images BGR, mean reversed too", mean=base.mean[::-1].copy(), reverse=True,
                            cure=cure)
    yield base._replace(name="colours: images BGR, mean as it is", reverse=True, cure=cure)
    if scale != (1, 1, 1):
        yield base._replace(name="scale: grey levels 0 to 255", factor=1 / column(scale),
                            cure="the weights seem to take grey levels that are not scaled")
    else:
        yield base._replace(
            name="scale: PyTorch's, (x / 255 - mean) / std", mean=torchvision_mean(),
            factor=column(torchvision_scale()), cure="state the scale when loading the weights",
        )


def column(values: Sequence[float]) -> np.ndarray:
    """Return one value per channel as float32 (3, 1, 1, 1)."""
    return np.array(values, np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
