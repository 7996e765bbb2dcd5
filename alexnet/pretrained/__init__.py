"""Load and save trained weights in several formats. The format of a file is detected from its content.

    own        run folders, their checkpoints, and exported weights: safetensors with checksums
    upstream   theano_alexnet's folder or zip of W_0_65.npy, W0_1_65.npy …
    caffe      bvlc_reference_caffenet.caffemodel and bvlc_alexnet.caffemodel
    onnx       AlexNet and CaffeNet of the ONNX model zoo, and files exported by this package

Pickles are never loaded. Any other format is refused, and so are weights whose names or shapes do not all match the
network.
"""

import importlib.util
import os
import pkgutil
from pathlib import Path

from alexnet.models import MODELS
from alexnet.pretrained import kinds
from alexnet.pretrained.weights import Weights, WeightsError, checked, imagenet_names
from alexnet.training.network import Network, backend_of

__all__ = ["FORMATS", "Weights", "WeightsError", "build", "imagenet_names", "kind_of", "load", "save"]

# module names instead of modules: the library of a format is imported on first use
FORMATS = {
    "own": "alexnet.pretrained.own",
    "upstream": "alexnet.pretrained.upstream",
    "caffe": "alexnet.pretrained.caffe",
    "onnx": "alexnet.pretrained.onnx",
}
ENDINGS = {".safetensors": "own", ".onnx": "onnx", ".zip": "upstream", "": "upstream"}


def load(path, unflipped=False, epoch=None):
    """Load the Weights from a file or folder in any of the FORMATS.

    Args:
        path: file or folder.
        unflipped: only for theano_alexnet's format: the filters already are those of a cross-correlation, as trained
            with lib_conv "cudaconvnet".
        epoch: only for theano_alexnet's format: the epoch to load; None for the newest.

    Raises:
        WeightsError: the format is unknown, or the weights do not match their network.
    """
    kind, place = kinds.found(expanded(path))
    reader = module_of(kind)
    if kind == "upstream":
        return reader.load(place, unflipped, epoch)
    if unflipped or epoch is not None:
        raise WeightsError(f"unflipped filters and epochs are choices about theano_alexnet's sets, and {path} is none")
    return reader.load(place)


def save(weights, path):
    """Write Weights in the format given by the suffix of `path`.

    Args:
        weights: the Weights to write.
        path: ends in .safetensors, .onnx or .zip. A path without a suffix becomes a folder of theano_alexnet's files.

    Raises:
        WeightsError: the weights cannot be written, or `path` exists and is not an empty folder.
    """
    path = expanded(path)
    if path.suffix not in ENDINGS:
        raise WeightsError(f"{path} must end in .safetensors, .onnx or .zip, or be a folder's name without an ending")
    writer = module_of(ENDINGS[path.suffix])
    try:
        if path.exists() and not (path.is_dir() and not path.suffix and not any(path.iterdir())):
            raise WeightsError(f"{path} is there already: name a new file or folder, or remove it first")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror}") from error
    writer.save(checked(weights, "what is to be saved"), path)


def module_of(kind):
    """Import the module of one of FORMATS; raises WeightsError if its library is not installed."""
    if kind == "onnx" and importlib.util.find_spec("onnx") is None:
        raise WeightsError('ONNX needs the package onnx, which is not installed: pip install -e ".[onnx]"')
    return pkgutil.resolve_name(FORMATS[kind])


def kind_of(path):
    """Detect which of FORMATS a file or folder has, from its content; raises WeightsError."""
    return kinds.found(expanded(path))[0]


def expanded(path):
    """Replace ~ and ~user with the home folder. The ~ of an unknown user is kept."""
    return Path(os.path.expanduser(path))


def build(weights, backend="auto", precision="float32", device="cpu", crop=True):
    """Compile the Network for some Weights. It has no update rule, so it predicts but cannot train.

    Args:
        crop: crop the images in the graph (alexnet.training.network.Network).

    Raises:
        WeightsError: the weights have no mean image.
    """
    if weights.mean is None:
        raise WeightsError(f"{weights.origin} comes without a mean image; give it with --mean FILE")
    model = MODELS[weights.model](None, classes=weights.classes)
    network = Network(
        model, weights.mean, backend=backend_of(backend, device), crop=crop, precision=precision, device=device
    )
    network.set_parameters(weights.arrays)
    return network
