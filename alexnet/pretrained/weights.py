"""A trained network without the run that made it, and what each file format makes of it."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.augment import IMAGE_SIZE, RESIZES
from alexnet.checkpoint import sync
from alexnet.models import MODELS

IMAGENET_CLASSES = 1000
MAX_CLASSES = 100_000                   # all of ImageNet has 21,841; more is damage, or meant to fill the memory
TORCHVISION = "torchvision's AlexNet is another network (64 filters in its first layer, no groups, no normalisation)"
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
    """The Weights with their arrays in the model's order, everything of them checked; raises WeightsError.

    The mean image becomes float32; 1000 classes without names get ILSVRC2012's, and the origin says so.

    source  what the message calls them: their path
    """
    classes = classes_of(weights, source)
    arrays = {name: fitting(weights, name, shape, source) for name, shape in shapes(weights.model, classes).items()}
    if extra := weights.arrays.keys() - arrays.keys():
        raise WeightsError(f"{source} has an array {min(extra)}, which {weights.model} does not know")
    if weights.resize not in RESIZES:
        raise WeightsError(f"{source} says resize {weights.resize!r}; there are {', '.join(RESIZES)}")
    weights = weights._replace(arrays=arrays, mean=checked_mean(weights.mean, source))
    if weights.class_names is None and classes == IMAGENET_CLASSES:
        note = f"{weights.origin}; its 1000 classes are taken for ILSVRC2012's"
        return weights._replace(class_names=imagenet_names(), origin=note)
    return weights._replace(class_names=checked_names(weights.class_names, classes, source))


def classes_of(weights, source):
    """Outputs of the network as its last biases have them; raises WeightsError where nothing can be said."""
    if not isinstance(weights.model, str) or weights.model not in MODELS:
        raise WeightsError(f"{source} holds a network {weights.model!r}; there are {', '.join(MODELS)}")
    name = f"{last_layer(weights.model)}.b"
    biases = weights.arrays.get(name)
    if biases is None or biases.ndim != 1 or not 1 <= biases.size <= MAX_CLASSES:
        found = f"shape {biases.shape}" if biases is not None else "nothing"
        raise WeightsError(f"{source}: {name} must hold one value for each of 1 to {MAX_CLASSES} classes, got {found}")
    return biases.size


def fitting(weights, name, shape, source):
    """The array `name` of Weights, contiguous, if it is float32 of this shape and finite."""
    array = weights.arrays.get(name)
    if array is None:
        raise WeightsError(f"{source} has no {name}, which {weights.model} needs")
    if array.shape != shape:
        raise WeightsError(f"{source}: {name} must have shape {shape}, got {array.shape}")
    if array.dtype != np.float32:
        raise WeightsError(f"{source}: {name} must be float32, got {array.dtype}")
    if not np.isfinite(array).all():
        raise WeightsError(f"{source}: {name} holds values that are not finite")
    return np.ascontiguousarray(array)


def checked_mean(mean, source):
    """The mean image as float32, or None where there is none."""
    if mean is None:
        return None
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    if mean.shape != shape or mean.dtype.kind not in "fiu":
        raise WeightsError(f"{source}: a mean image is float {shape}, got {mean.dtype} {mean.shape}")
    if not ((mean >= 0) & (mean <= 255)).all():
        raise WeightsError(f"{source}: the mean image holds values outside 0 to 255")
    return np.ascontiguousarray(mean, dtype=np.float32)


def checked_names(names, classes, source):
    """The class names as a tuple, or None where there are none."""
    if names is None:
        return None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{source}: the class names must be a list of texts")
    if len(names) != classes:
        raise WeightsError(f"{source} names {len(names)} classes, its network has {classes}")
    return tuple(names)


def shapes(model, classes):
    """Name -> shape of every parameter of a network with `classes` outputs, in the model's order.

    Nothing as large as `classes` is allocated, for the number comes out of files.
    """
    network = MODELS[model](None, classes=1)
    classifiers = {parameter.name for name in network.classifiers for parameter in network.weight_layers[name]}
    return {
        parameter.name: (*parameter.shape[:-1], classes) if parameter.name in classifiers else parameter.shape
        for parameter in network.parameters
    }


def last_layer(model):
    """The name of the layer whose outputs are the classes: fc8."""
    return list(shapes(model, 1))[-1].split(".")[0]


def imagenet_names():
    """ "wnid words" of ILSVRC2012's 1000 classes, in the order of the labels."""
    lines = NAMES_FILE.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


@contextmanager
def whole(path):
    """A path to write a file or a folder to, which becomes `path` when the block ends well: all of it, or nothing.

    Raises WeightsError where the disk refuses, or where something is there that cannot be replaced.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        remove(partial)
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        remove(partial)


def remove(path):
    """Remove a file or a folder that may be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
