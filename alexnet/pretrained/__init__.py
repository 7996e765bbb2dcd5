"""Trained weights of others and of ours: load any kind, told apart by its content, and save what others read.

    own        a run's folder, its checkpoints, and exported weights: safetensors with checksums
    upstream   theano_alexnet's folder or zip of W_0_65.npy, W0_1_65.npy …
    caffe      bvlc_reference_caffenet.caffemodel and bvlc_alexnet.caffemodel
    onnx       AlexNet and CaffeNet of the ONNX model zoo, and our exports

Nothing is unpickled; whatever is not one of these, or does not fit its network in every name and shape, is refused.
"""

import importlib.util
import os
import pkgutil
from pathlib import Path

from alexnet.compile import Network, engine_of
from alexnet.models import MODELS
from alexnet.pretrained import kinds
from alexnet.pretrained.weights import Weights, WeightsError, checked, imagenet_names

__all__ = ["FORMATS", "Weights", "WeightsError", "build", "imagenet_names", "kind_of", "load", "save"]

# by name: a format's library is imported by those who use it
FORMATS = {
    "own": "alexnet.pretrained.own",
    "upstream": "alexnet.pretrained.upstream",
    "caffe": "alexnet.pretrained.caffe",
    "onnx": "alexnet.pretrained.onnx",
}
ENDINGS = {".safetensors": "own", ".onnx": "onnx", ".zip": "upstream", "": "upstream"}


def load(path, unflipped=False, epoch=None):
    """The Weights in a file or folder, of any of the FORMATS; raises WeightsError for all else.

    Two choices about theano_alexnet's sets:

    unflipped  the filters are a correlation's already, as lib_conv "cudaconvnet" trains them
    epoch      which of several; None: the newest
    """
    kind, place = kinds.found(expanded(path))
    reader = module_of(kind)
    if kind == "upstream":
        return reader.load(place, unflipped, epoch)
    if unflipped or epoch is not None:
        raise WeightsError(f"unflipped filters and epochs are choices about theano_alexnet's sets, and {path} is none")
    return reader.load(place)


def save(weights, path):
    """Write Weights so that others can read them; raises WeightsError, also where something is there already.

    The ending says how: .safetensors, .onnx, .zip, or none for a folder (theano_alexnet's files).
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
    """The module of one of FORMATS; raises WeightsError where its library is not installed."""
    if kind == "onnx" and importlib.util.find_spec("onnx") is None:
        raise WeightsError('ONNX needs the package onnx, which is not installed: pip install -e ".[onnx]"')
    return pkgutil.resolve_name(FORMATS[kind])


def kind_of(path):
    """Which of FORMATS a file or folder is, by its content; raises WeightsError."""
    return kinds.found(expanded(path))[0]


def expanded(path):
    """The path with ~ as the user's home; one that is nobody's stays as it is."""
    return Path(os.path.expanduser(path))


def build(weights, engine="auto", precision="float32", device="cpu", crop=True):
    """The compiled Network of Weights, for images that are cropped in the graph (alexnet.compile.Network).

    It has no update rule, so it predicts and does not train.  Raises WeightsError where there is no mean image.
    """
    if weights.mean is None:
        raise WeightsError(f"{weights.origin} comes without a mean image; say which with --mean FILE")
    model = MODELS[weights.model](None, classes=weights.classes)
    network = Network(
        model, weights.mean, engine=engine_of(engine, device), crop=crop, precision=precision, device=device
    )
    network.set_parameters(weights.arrays)
    return network
