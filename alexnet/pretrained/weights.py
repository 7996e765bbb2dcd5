"""A trained network without the run that made it, and what each file format makes of it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.models import MODELS

IMAGENET_CLASSES = 1000
NAMES_FILE = Path(__file__).with_name("ilsvrc2012.txt")


class WeightsError(ValueError):
    """Weights that cannot be read, used or written: the message is one sentence."""


class Weights(NamedTuple):
    """The parameters of a network, for RGB images, and what belongs to them.

    model        a name of alexnet.models.MODELS
    arrays       name -> float32 array of every parameter, conv1.W … fc8.b: filters (in / groups, row, column, out) of
                 a cross-correlation, dense weights (in, out)
    mean         float32 (3, 256, 256), grey levels, RGB: subtracted from every image; None where nobody said
    class_names  "wnid words" of each class in the order of the labels; None where nobody said
    resize       how images become 256 x 256 pixels: "squash" or "crop", alexnet.images
    origin       where they come from, for the reader: what kind of file, which path, what was assumed
    """

    model: str
    arrays: dict[str, np.ndarray]
    mean: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    resize: str = "squash"
    origin: str = ""

    @property
    def classes(self):
        """Outputs of the last layer."""
        return list(self.arrays.values())[-1].shape[-1]


def checked(weights, source):
    """The Weights with their arrays in the model's order, every shape and value checked; raises WeightsError.

    source  what the message calls them: their path
    """
    if weights.model not in MODELS:
        raise WeightsError(f"{source} holds a network {weights.model!r}; there are {', '.join(MODELS)}")
    if not weights.arrays:
        raise WeightsError(f"{source} holds no arrays")
    last = last_layer(weights.model)
    classes = weights.arrays[f"{last}.b"].shape[-1] if np.ndim(weights.arrays.get(f"{last}.b")) == 1 else 0
    if not classes:
        raise WeightsError(f"{source} has no {last}.b with one value for each class")
    arrays = {}
    for name, shape in shapes(weights.model, classes).items():
        array = weights.arrays.get(name)
        if array is None:
            raise WeightsError(f"{source} has no {name}, which {weights.model} needs")
        if array.shape != shape:
            raise WeightsError(f"{source}: {name} must have shape {shape}, got {array.shape}")
        if array.dtype != np.float32:
            raise WeightsError(f"{source}: {name} must be float32, got {array.dtype}")
        if not np.isfinite(array).all():
            raise WeightsError(f"{source}: {name} holds values that are not finite")
        arrays[name] = np.ascontiguousarray(array)
    if extra := weights.arrays.keys() - arrays.keys():
        raise WeightsError(f"{source} has an array {min(extra)}, which {weights.model} does not know")
    if weights.class_names is not None and len(weights.class_names) != classes:
        raise WeightsError(f"{source} names {len(weights.class_names)} classes, its network has {classes}")
    return weights._replace(arrays=arrays)


def shapes(model, classes):
    """Name -> shape of every parameter of a network with `classes` outputs, in the model's order."""
    return {parameter.name: parameter.shape for parameter in MODELS[model](None, classes=classes).parameters}


def last_layer(model):
    """The name of the layer whose outputs are the classes: fc8."""
    return list(shapes(model, 1))[-1].split(".")[0]


def imagenet_names():
    """ "wnid words" of ILSVRC2012's 1000 classes, in the order of the labels."""
    lines = NAMES_FILE.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
