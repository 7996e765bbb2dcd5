"""The mean image of Caffe networks.

Source: BVLC Caffe, tools/compute_image_mean.cpp and examples/00-classification.ipynb; the train_val.prototxt of
bvlc_googlenet and SqueezeNet_v1.0; the page of VGG_ILSVRC_16_layers in Caffe's model zoo.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet.data.augment import IMAGE_SIZE
from alexnet.pretrained.caffe.messages import MESSAGES, array_of
from alexnet.pretrained.layout import rgb
from alexnet.pretrained.preprocessing import constant_image
from alexnet.pretrained.protobuf import contents, parsed
from alexnet.pretrained.weights import WeightsError

PUBLISHED = (104.0069879317889, 116.66876761696767, 122.6789143406786)   # BGR: pixel mean of ilsvrc_2012_mean.npy
OF_MODELS = {                           # BGR: what the authors of a network subtracted, if they published no mean image
    "bvlc_googlenet": (104.0, 117.0, 123.0),
    "deepscale_squeezenet": (104.0, 117.0, 123.0),
    "squeezenet": (104.0, 117.0, 123.0),
    "vgg16": (103.939, 116.779, 123.68),
}
SHAPE = (3, IMAGE_SIZE, IMAGE_SIZE)


def mean_beside(path: Path, model: str = "") -> tuple[np.ndarray, str]:
    """Return (mean image, its origin) for the weights `path` of a model.

    It is constant per channel if the authors of the network subtracted such a mean. Otherwise it is read from the
    *mean*.binaryproto in the folder of the weights, if there is exactly one. Otherwise it is constant per channel, with
    the channel means that Caffe published for ImageNet.
    """
    if model in OF_MODELS:
        values = OF_MODELS[model]
        return constant_mean(values), f"the authors' mean of each channel, BGR {', '.join(f'{v:g}' for v in values)}"
    files = sorted(path.parent.glob("*mean*.binaryproto"))
    if len(files) == 1:
        return read_mean(files[0]), f"the mean image of {files[0].name}"
    found = f"{len(files)} *mean*.binaryproto" if files else "no *mean*.binaryproto"
    return constant_mean(PUBLISHED), f"ImageNet's mean of each channel, as Caffe published it ({found} in its folder)"


def read_mean(path: Path) -> np.ndarray:
    """Read the mean image from a .binaryproto file: float32 (3, 256, 256), RGB; raises WeightsError."""
    blob = parsed(MESSAGES["BlobProto"](), contents(path), path, "mean image of Caffe")
    image = array_of(blob, f"{path}: the mean image")
    if image.shape[-3:] != SHAPE or image.size != np.prod(SHAPE):
        raise WeightsError(f"{path} must hold a mean image of shape {SHAPE}, got {image.shape}")
    return rgb(image.reshape(SHAPE))


def constant_mean(values: Sequence[float]) -> np.ndarray:
    """Return the mean image for one value per channel, given in BGR order: float32 (3, 256, 256), RGB."""
    return constant_image(values[::-1])
