"""The most probable classes of images.  In two lines:

    from alexnet.predict import Predictor
    guesses = Predictor("weights.safetensors")("cat.jpg")

Guesses come the most probable first: guesses[0] is Guess(probability=0.63, label=281, wnid="n02123045", words="tabby,
tabby cat").  An image is a file's path, or its pixels: uint8 (row, column, 3), RGB, of any size.
"""

import os
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np

from alexnet import pretrained
from alexnet.ahead import in_order
from alexnet.evaluate import log_sum_exp, scores_of
from alexnet.hkl import name_of
from alexnet.images import BadImage, batch_of, pixels_of, read_image
from alexnet.labelled import CORES
from alexnet.sources import WNID

BATCH_SIZE = 64                                  # images whose answers come together


class Guess(NamedTuple):
    """One class that an image may show; wnid is None where the weights do not say, words are then "class 17"."""

    probability: float                           # 0 to 1
    label: int
    wnid: str | None                             # WordNet's number of the class: n02123045
    words: str


class Predictor:
    """Trained weights that are asked about images; for one thread at a time.

    weights  path of a file or folder that alexnet.pretrained loads, or the Weights that it gave
    crops    1: the middle of each image; 10: the mean of the paper's ten, better and ten times slower
    network  where it is to compute elsewhere than on the CPU: pretrained.build(weights, device="cuda0")

    Raises WeightsError for weights that cannot be used.
    """

    def __init__(self, weights, crops=1, network=None):
        self.weights = weights if isinstance(weights, pretrained.Weights) else pretrained.load(weights)
        self.crops, self.network = crops, network or pretrained.build(self.weights)
        self.names = [wnid_and_words(self.weights.class_names, label) for label in range(self.weights.classes)]

    def __call__(self, image, top=5):
        """The `top` most probable Guesses for an image; raises BadImage, which says why, for what is none."""
        ((_, answer),) = self.each([image], top)
        if isinstance(answer, BadImage):
            raise BadImage(f"{shown(image)} {answer}")
        return answer

    def each(self, images, top=5, batch_size=BATCH_SIZE):
        """Yield (image, Guesses) of many images in order, batch by batch; a BadImage in their place for what is none.

        images may be any iterable; threads read them ahead of the network, so it is always some images further.
        Raises ValueError where the network's outputs are not finite.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        with closing(in_order(self.read, images, CORES, ahead=batch_size + CORES)) as read:
            while batch := list(islice(read, batch_size)):
                good = [pixels for _, pixels in batch if not isinstance(pixels, BadImage)]
                answers = iter(self.guesses(batch_of(good), top) if good else ())
                for image, pixels in batch:
                    yield image, pixels if isinstance(pixels, BadImage) else next(answers)

    def read(self, image):
        """(image, its pixels, uint8 (256, 256, 3)), or (image, the BadImage that it is)."""
        try:
            if isinstance(image, str | bytes | os.PathLike):
                return image, read_image(image, self.weights.resize)
            return image, pixels_of(image, self.weights.resize)
        except BadImage as error:
            return image, error

    def guesses(self, images, top):
        """The `top` Guesses for each of a batch, uint8 (3, 256, 256, batch); of equal ones the lower class first."""
        scores = scores_of(self.network, images, self.crops)
        probabilities = np.exp(scores - log_sum_exp(scores))
        order = np.argsort(-scores, axis=0, kind="stable")[:top]
        for image, labels in enumerate(order.T.tolist()):
            yield tuple(Guess(float(probabilities[label, image]), label, *self.names[label]) for label in labels)


def wnid_and_words(class_names, label):
    """The wnid of a class, or None, and the rest of its name."""
    if class_names is None:
        return None, f"class {label}"
    found = WNID.fullmatch(class_names[label])
    return (found[1], found[2]) if found else (None, class_names[label])


def shown(image):
    """What a message calls an image."""
    return name_of(image) if isinstance(image, str | bytes | os.PathLike) else "an image"
