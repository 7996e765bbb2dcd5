"""The trained weights of a network, independent of the run that produced them and of the file format."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.data.augment import IMAGE_SIZE, RESIZES, UNSCALED, Scale, scale_of
from alexnet.models import MODELS
from alexnet.native import atomic
from alexnet.native.untrusted import InputError

IMAGENET_CLASSES = 1000
MAX_CLASSES = 100_000                   # the full ImageNet has 21,841; more means a damaged or malicious file
NAMES_FILE = Path(__file__).with_name("ilsvrc2012.txt")


class WeightsError(InputError):
    """Weights cannot be read, used or written. The message is one sentence."""


class Weights(NamedTuple):
    """The parameters of a network for RGB images, and the information needed to use them.

        input of the network = scale * (pixels - mean), then the centre crop of the model's image_size

    model        a name of alexnet.models.MODELS, which may be module:Class
    arrays       name -> float32 array of every parameter, conv1.W … fc8.b: filters (in / groups, row, column, out) of
                 a cross-correlation, dense weights (in, out). Those of the auxiliary classifiers may all be absent
    mean         float32 (3, 256, 256), grey levels, RGB: subtracted from every image; None if unknown
    class_names  "wnid words" of each class in the order of the labels; None if unknown
    resize       how images are resized to 256 x 256 pixels: "squash", "crop" or "shorter", see alexnet.data.images
    origin       description of the source: format, file name without its folder, and the assumptions made
    scale        factor of each channel, RGB; 1 for networks that take grey levels
    """

    model: str
    arrays: dict[str, np.ndarray]
    mean: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    resize: str = "squash"
    origin: str = ""
    scale: Scale = UNSCALED

    @property
    def classes(self) -> int:
        """The number of classes, which is the number of outputs of the last layer."""
        return list(self.arrays.values())[-1].shape[-1]


def checked(weights: Weights, source: str | Path) -> Weights:
    """Validate Weights and return them with their arrays in the order of the model.

    The mean image is converted to float32. If there are 1000 classes without names, they get the names of ILSVRC2012,
    and the origin notes this assumption.

    Args:
        source: name of the weights in error messages, usually their path.

    Raises:
        WeightsError: a field is invalid or does not match the model.
    """
    classes = classes_of(weights, source)
    absent = absent_auxiliaries(weights)
    arrays = {
        name: fitting(weights, name, shape, source)
        for name, shape in shapes(weights.model, classes).items()
        if name not in absent
    }
    if extra := weights.arrays.keys() - arrays.keys():
        raise WeightsError(f"{source} has an array {min(extra)}, which {weights.model} does not know")
    if not isinstance(weights.origin, str):
        raise WeightsError(f"{source} has an origin that is no text")
    if weights.resize not in RESIZES:
        raise WeightsError(f"{source} has resize {weights.resize!r}; there are {', '.join(RESIZES)}")
    scale = checked_scale(weights.scale, source)
    weights = weights._replace(arrays=arrays, mean=checked_mean(weights.mean, source), scale=scale)
    if weights.class_names is None and classes == IMAGENET_CLASSES:
        note = f"{weights.origin}; its 1000 classes are taken for ILSVRC2012's"
        return weights._replace(class_names=imagenet_names(), origin=note)
    return weights._replace(class_names=checked_names(weights.class_names, classes, source))


def absent_auxiliaries(weights: Weights) -> frozenset[str]:
    """Return the names of the parameters of auxiliary classifiers if the Weights have none of them, else no names."""
    auxiliary = MODELS[weights.model].outline().auxiliary
    return frozenset() if auxiliary & weights.arrays.keys() else auxiliary


def classes_of(weights: Weights, source: str | Path) -> int:
    """Return the number of classes, from the biases of the last layer.

    Raises:
        WeightsError: the model is unknown, or the biases are missing or invalid.
    """
    check_model(weights.model, source)
    name = list(shapes(weights.model, 1))[-1]
    biases = weights.arrays.get(name)
    if biases is None or biases.ndim != 1 or not 1 <= biases.size <= MAX_CLASSES:
        found = f"shape {biases.shape}" if biases is not None else "nothing"
        raise WeightsError(f"{source}: {name} must hold one value for each of 1 to {MAX_CLASSES} classes, got {found}")
    return biases.size


def check_model(name: object, source: str | Path) -> None:
    """Raise WeightsError unless `name`, from an untrusted file, is that of a known model. Nothing is imported."""
    if not isinstance(name, str) or name not in MODELS:
        outside = f"; if you trust it, give --model {name}" if isinstance(name, str) and ":" in name else ""
        raise WeightsError(f"{source} holds a network {name!r}; there are {', '.join(MODELS)}{outside}")


def fitting(weights: Weights, name: str, shape: tuple[int, ...], source: str | Path) -> np.ndarray:
    """Return the array `name` of Weights, contiguous; raises WeightsError unless it is finite float32 of `shape`."""
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


def checked_mean(mean: np.ndarray | None, source: str | Path) -> np.ndarray | None:
    """Return the mean image as float32, or None if it is None; raises WeightsError."""
    if mean is None:
        return None
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    if mean.shape != shape or mean.dtype.kind not in "fiu":
        raise WeightsError(f"{source}: a mean image is float {shape}, got {mean.dtype} {mean.shape}")
    if not ((mean >= 0) & (mean <= 255)).all():
        raise WeightsError(f"{source}: the mean image holds values outside 0 to 255")
    return np.ascontiguousarray(mean, dtype=np.float32)


def checked_scale(scale: object, source: str | Path) -> Scale:
    """Return the factors of the channels as float32 values; raises WeightsError."""
    try:
        return scale_of(scale)
    except ValueError as error:
        raise WeightsError(f"{source} has {error}") from error


def checked_names(names: object, classes: int, source: str | Path) -> tuple[str, ...] | None:
    """Return the class names as a tuple, or None if they are None; raises WeightsError."""
    if names is None:
        return None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{source}: the class names must be a list of texts")
    if len(names) != classes:
        raise WeightsError(f"{source} names {len(names)} classes, its network has {classes}")
    return tuple(names)


def shapes(model: str, classes: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every parameter of a network with `classes` outputs, in the order of the model.

    Nothing of size `classes` is allocated, because the number comes from an untrusted file.
    """
    known = MODELS[model].outline()
    return {
        name: (*shape[:-1], classes) if name in known.classifiers else shape for name, shape in known.shapes.items()
    }


def imagenet_names() -> tuple[str, ...]:
    """Return "wnid words" of the 1000 classes of ILSVRC2012, in the order of the labels."""
    lines = NAMES_FILE.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path for writing a file or folder. It is renamed to `path` when the block succeeds.

    Raises:
        WeightsError: writing fails, or `path` exists and cannot be replaced.
    """
    try:
        with atomic.replacing(path, fsync=True) as partial:
            yield partial
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}") from error
