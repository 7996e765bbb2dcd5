"""Predict the most probable classes of images:

    from alexnet.inference.predict import Predictor
    guesses = Predictor("weights.safetensors")("cat.jpg")

Guesses are sorted by decreasing probability: guesses[0] is Guess(probability=0.63, label=281, wnid="n02123045",
words="tabby, tabby cat"). An image is the path of a file, an open binary file, a Pillow image, or an array of any size:
(row, column, 3), RGB, or (row, column), grey; uint8, or floats from 0 to 1 or from 0 to 255.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from alexnet import pretrained
from alexnet.data.batch_file import name_of
from alexnet.data.image_formats import SUFFIXES
from alexnet.data.image_listing import WNID
from alexnet.data.images import BadImage, ImageSource, batch_of, image_of
from alexnet.data.prefetch import in_order
from alexnet.inference.evaluate import log_sum_exp, scores_of
from alexnet.inference.evaluation_data import CORES
from alexnet.training.network import Network

BATCH_SIZE = 64                                  # images per call of the network

Source = TypeVar("Source", bound=ImageSource)


class Guess(NamedTuple):
    """A predicted class. If the weights have no class names, wnid is None and words are, for example, "class 17"."""

    probability: float                           # 0 to 1
    label: int
    wnid: str | None                             # WordNet ID of the class, such as n02123045
    words: str


class Predictor:
    """Predicts the classes of images with trained weights. Not thread-safe.

    Args:
        weights: path of a file or folder that alexnet.pretrained can load, or Weights.
        crops: 1: the centre of each image. 10: the mean over the paper's ten crops; better, and ten times slower.
        network: a network for another device than the CPU: pretrained.build(weights, device="cuda0").

    Raises:
        WeightsError: the weights cannot be used.
    """

    def __init__(self, weights: str | Path | pretrained.Weights, crops: int = 1, network: Network | None = None):
        self.weights = weights if isinstance(weights, pretrained.Weights) else pretrained.load(weights)
        self.crops = crops
        self.network = network or pretrained.build(self.weights)
        self.names = [wnid_and_words(self.weights.class_names, label) for label in range(self.weights.classes)]

    def __call__(self, image: ImageSource, top: int = 5) -> tuple[Guess, ...]:
        """Return the `top` most probable Guesses for an image; raises BadImage with the reason if it is unusable."""
        ((_, guesses),) = self.each([image], top)
        if isinstance(guesses, BadImage):
            raise BadImage(f"{shown(image)} {guesses}")
        return guesses

    def each(
        self, images: Iterable[Source], top: int = 5, batch_size: int = BATCH_SIZE
    ) -> Iterator[tuple[Source, tuple[Guess, ...] | BadImage]]:
        """Yield (image, Guesses) of many images, in order and batch by batch; (image, BadImage) for an unusable image.

        Args:
            images: any iterable. Threads prefetch the images, so it is consumed some images ahead of the results.

        Raises:
            ValueError: `top` is less than 1, or the outputs of the network are not finite.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        with closing(in_order(self.read, images, CORES, ahead=batch_size + CORES)) as read:
            while batch := list(islice(read, batch_size)):
                good = [pixels for _, pixels in batch if not isinstance(pixels, BadImage)]
                guesses = iter(self.guesses(batch_of(good), top) if good else ())
                for image, pixels in batch:
                    yield image, pixels if isinstance(pixels, BadImage) else next(guesses)

    def read(self, image: Source) -> tuple[Source, np.ndarray | BadImage]:
        """Return (image, its pixels as uint8 (256, 256, 3)), or (image, BadImage)."""
        try:
            return image, image_of(image, self.weights.resize)
        except BadImage as error:
            return image, error

    def guesses(self, images: np.ndarray, top: int) -> Iterator[tuple[Guess, ...]]:
        """Yield the `top` Guesses per image of a batch, uint8 (3, 256, 256, batch); ties rank the lower class first."""
        scores = scores_of(self.network, images, self.crops)
        probabilities = np.exp(scores - log_sum_exp(scores))
        order = np.argsort(-scores, axis=0, kind="stable")[:top]
        for image, labels in enumerate(order.T.tolist()):
            yield tuple(Guess(float(probabilities[label, image]), label, *self.names[label]) for label in labels)


class FolderEntries(NamedTuple):
    """The paths below a folder, in sorted order."""

    images: list[str]                            # files named as images, and folders that cannot be listed
    others: list[str]                            # other files


def entries_below(folder: str) -> FolderEntries:
    """Return the files below a folder, recursively, each folder's in the order of their bytes.

    Hidden entries are ignored. Linked folders are followed, but no folder is entered twice.
    """
    found = FolderEntries([], [])
    entered: set[tuple[int, int]] = set()

    def enter(path: str) -> None:
        try:
            status = os.stat(path)
            with os.scandir(path) as scanned:
                inside = sorted(scanned, key=lambda entry: os.fsencode(entry.name))
        except OSError:
            found.images.append(path)            # reading it as an image fails with the reason
            return
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        for entry in inside:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                enter(entry.path)
            else:
                (found.images if entry.name.lower().endswith(SUFFIXES) else found.others).append(entry.path)

    enter(folder)
    return found


def wnid_and_words(class_names: Sequence[str] | None, label: int) -> tuple[str | None, str]:
    """Return (wnid or None, rest of the name) of a class."""
    if class_names is None:
        return None, f"class {label}"
    found = WNID.fullmatch(class_names[label])
    return (found[1], found[2]) if found else (None, class_names[label])


def shown(image: ImageSource) -> str:
    """Return the name of an image for messages."""
    return name_of(image) if isinstance(image, str | bytes | os.PathLike) else "an image"
