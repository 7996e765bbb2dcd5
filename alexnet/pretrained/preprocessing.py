"""What images a network of another program takes: colours, mean, scale and resize.

Files of PyTorch and ONNX do not state it. It follows from the program that wrote the file, or the user states it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.data.augment import IMAGE_SIZE, UNSCALED, Scale
from alexnet.pretrained.weights import WeightsError

PREPROCESSINGS = {
    "torchvision": "RGB, ((x / 255) - mean) / std, shorter side resized to 256 pixels",
    "caffe": "BGR, x - mean, grey levels 0 to 255",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)           # of ImageNet, RGB, in torchvision's range 0 to 1


class Preprocessing(NamedTuple):
    """What a network takes.

    bgr      whether the first channel is blue
    mean     float32 (3, 256, 256), grey levels, RGB
    scale    factor of each channel after the mean is subtracted, RGB
    resize   how images are resized; see alexnet.data.images
    summary  description for `origin`
    """

    bgr: bool
    mean: np.ndarray
    scale: Scale
    resize: str
    summary: str


def preprocessing_of(name: str, path: Path, model: str) -> Preprocessing:
    """Return the Preprocessing of a name for the weights of a model in `path`; raises WeightsError."""
    if name == "torchvision":
        summary = "torchvision's preprocessing (RGB, mean and std of ImageNet)"
        return Preprocessing(False, torchvision_mean(), torchvision_scale(), "shorter", summary)
    if name != "caffe":
        raise WeightsError(f"there is no preprocessing {name!r}; there are {', '.join(PREPROCESSINGS)}")
    from alexnet.pretrained.caffe.caffemodel import RESIZES_OF  # protobuf takes 0.1 s to import
    from alexnet.pretrained.caffe.mean import mean_beside  # likewise

    mean, origin = mean_beside(path, model)
    resize = RESIZES_OF.get(model, "squash")
    return Preprocessing(True, mean, UNSCALED, resize, f"Caffe's preprocessing (BGR, grey levels), with {origin}")


def torchvision_mean() -> np.ndarray:
    """Return torchvision's mean as an image: float32 (3, 256, 256), grey levels, RGB."""
    return constant_image([255 * value for value in MEAN])


def torchvision_scale() -> Scale:
    """Return the factor that, after the mean of grey levels is subtracted, equals torchvision's Normalize."""
    red, green, blue = (float(np.float32(1 / (255 * value))) for value in STD)
    return red, green, blue


def constant_image(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return an image with one value per channel: float32 (3, 256, 256)."""
    image = np.empty((len(values), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    image[:] = np.array(values, np.float32)[:, np.newaxis, np.newaxis]
    return image
