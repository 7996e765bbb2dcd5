"""The task that experiments.asgd trains: a synthetic set of images that is hard to learn, and a small network.

An image has 20 x 20 pixels of noise. It contains a pattern of 16 x 16 pixels at a random position that determines the
class, and a second, uninformative pattern. Each class has several patterns, which may be mirrored. The gradients are
therefore noisy, as for ImageNet, crops and mirroring matter, and the network cannot memorise the images in a few
epochs. All random numbers are derived from a seed.

The network is a perceptron with 256, 64 and 10 units and 17,098 weights. It uses this project's Network, momentum SGD
and cost, on images cropped to 16 x 16. A step takes 0.1 ms, because PyTensor compiles it as a whole with Numba.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pytensor.tensor as pt

from alexnet.nn import Dense, Flatten, Sequential, relu
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd

CLASSES, PATTERNS, DISTRACTORS = 10, 8, 400
SIZE, CROP = 20, 16                              # pixels: side of an image and of the network's input
NOISE, DISTRACTION, SHARPNESS = 0.6, 0.5, 2.5    # in standard deviations of a pattern; periods per pattern
GREY, CONTRAST = 128, 28                         # grey levels: the mean, and a pattern's standard deviation
BATCH = 16
TRAIN, TEST = 32_000, 4_000
BEFORE = 256                                     # number of steps whose random numbers are drawn at once


class Images(NamedTuple):
    """Labelled images.

    pixels: uint8 (image, row, column)
    labels: int32 (image,)
    """

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Task:
    """The data and the network of one training.

    batches:  float32 (batch, row, column, image), mean subtracted
    labels:   int32 (batch, image)
    test:     (five crops of the test images, each float32 (1, row, column, image), the centre crop first; labels)
    network:  alexnet.training.network.Network
    begin:    initial state of the network
    """

    batches: np.ndarray
    labels: np.ndarray
    test: tuple
    network: Network
    begin: dict


def patterns(rng, n):
    """Return n smooth random patterns with mean 0 and standard deviation 1, float32 (n, CROP, CROP)."""
    waves = np.fft.rfft2(rng.standard_normal((n, CROP, CROP)))
    frequency = CROP * np.hypot(np.fft.fftfreq(CROP)[:, np.newaxis], np.fft.rfftfreq(CROP))
    made = np.fft.irfft2(waves * np.exp(-((frequency / SHARPNESS) ** 2)), s=(CROP, CROP))
    return (made / made.std(axis=(1, 2), keepdims=True)).astype("float32")


def make_images(n, seed):
    """Return n Images; the patterns are the same for all seeds."""
    telling = patterns(np.random.default_rng(1), CLASSES * PATTERNS)
    distracting = DISTRACTION * patterns(np.random.default_rng(2), DISTRACTORS)
    rng = np.random.default_rng([3, seed])
    labels = rng.integers(CLASSES, size=n, dtype=np.int32)
    images = np.float32(NOISE) * rng.standard_normal((n, SIZE, SIZE), dtype="float32")
    lay_on(images, telling[PATTERNS * labels + rng.integers(PATTERNS, size=n)], rng)
    lay_on(images, distracting[rng.integers(DISTRACTORS, size=n)], rng)
    return Images(np.clip(GREY + CONTRAST * images, 0, 255).astype("uint8"), labels)


def lay_on(images, each, rng):
    """Add a pattern to each image at a random position, randomly mirrored."""
    places = SIZE - CROP + 1
    rows, columns, mirrors = (rng.integers(top, size=len(images)) for top in (places, places, 2))
    for row, column, mirror in np.ndindex(places, places, 2):
        here = np.flatnonzero((rows == row) & (columns == column) & (mirrors == mirror))
        images[here, row : row + CROP, column : column + CROP] += each[here][:, :, :: 1 - 2 * mirror]


class Product(Dense):
    """Dense, written as a matrix product, which Numba delegates to the BLAS."""

    def __init__(self, rng, inputs, outputs, relu=True, std=0.01):
        super().__init__(rng, inputs, outputs, relu, std, bias=0.0)

    def __call__(self, x, training=None):
        y = pt.dot(self.W.variable.T, x) + self.b.variable.dimshuffle(0, "x")
        return relu(y) if self.relu else y


class Perceptron(Sequential):
    """A 256 - 64 - 10 perceptron with small initial weights like AlexNet's, so that no unit is specialised at first."""

    channels, image_size = 1, CROP

    def __init__(self, rng, hidden=64):
        super().__init__(
            Flatten(),
            Product(rng, CROP * CROP, hidden, std=0.1 / CROP),
            Product(rng, hidden, CLASSES, relu=False, std=0.1 / hidden**0.5),
        )


@cache
def task(train=TRAIN, test=TEST, compiled=True):
    """Return the Task.

    Args:
        train: number of training images.
        test: number of test images.
        compiled: compile with Numba; otherwise PyTensor runs in Python, which is slower but needs no compilation.
    """
    images, tested = make_images(train, 1), make_images(test, 2)
    mean = images.pixels.mean(axis=0, dtype="float32")
    batches = train // BATCH
    lying = np.float32(1 / 40) * (images.pixels - mean)[: batches * BATCH]
    lying = lying.reshape(batches, BATCH, SIZE, SIZE).transpose(0, 2, 3, 1)
    network = Network(
        Perceptron(np.random.default_rng(0)), np.zeros((1, CROP, CROP), "float32"), momentum_sgd, "numpy",
        crop=False,
    )
    if compiled:
        network.mode = "NUMBA"
    begin = {name: array.copy() for name, array in network.get_state().items()}
    labels = images.labels[: batches * BATCH].reshape(batches, BATCH)
    return Task(np.ascontiguousarray(lying), labels, (crops_of(tested.pixels - mean), tested.labels), network, begin)


def crops_of(images):
    """Return the centre crop and the four corner crops of the images, float32 (1, row, column, image)."""
    middle, last = (SIZE - CROP) // 2, SIZE - CROP
    corners = ((middle, middle), (0, 0), (0, last), (last, 0), (last, last))
    lying = np.float32(1 / 40) * images.transpose(1, 2, 0)[np.newaxis]
    return [np.ascontiguousarray(lying[:, row : row + CROP, column : column + CROP]) for row, column in corners]


class Batches:
    """The batches of one client. Seed and client number determine batch, crop position and mirroring."""

    def __init__(self, of, seed, client):
        self._of, self._rng, self._drawn = of, np.random.default_rng([4, seed, client]), iter(())

    def next(self):
        """Return (images, labels) of the next batch: float32 (1, row, column, image), int32 (image,)."""
        if (drawn := next(self._drawn, None)) is None:
            tops = (len(self._of.batches), SIZE - CROP + 1, SIZE - CROP + 1, 2)
            self._drawn = iter(self._rng.integers(tops, size=(BEFORE, 4)).tolist())
            drawn = next(self._drawn)
        batch, row, column, mirror = drawn
        images = self._of.batches[batch, row : row + CROP, column : column + CROP]
        return np.ascontiguousarray(images[:, :: 1 - 2 * mirror])[np.newaxis], self._of.labels[batch]


def error_on_test(of):
    """Return the network's test error for the centre crop."""
    crops, labels = of.test
    return float(np.mean(of.network.predict(crops[0]).argmax(axis=0) != labels))


def errors_on_test(of):
    """Return the network's test errors: (error for the centre crop, error for the mean over ten crops)."""
    crops, labels = of.test
    views = [view for crop in crops for view in (crop, np.ascontiguousarray(crop[:, :, ::-1]))]
    probabilities = [of.network.predict(view) for view in views]
    both = probabilities[0], sum(probabilities)
    return tuple(float(np.mean(each.argmax(axis=0) != labels)) for each in both)
