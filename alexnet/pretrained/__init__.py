"""Load and save trained weights in several formats. The format of a file is detected from its content.

    native      run folders, their checkpoints, and exported weights: safetensors with checksums
    upstream    theano_alexnet's folder or zip of W_0_65.npy, W0_1_65.npy …
    caffe       CaffeNet, AlexNet, GoogLeNet, VGG-16 and SqueezeNet as .caffemodel
    npz         SqueezeNet as arrays LAYER.weight and LAYER.bias by Caffe's names of layers
    onnx        AlexNet and CaffeNet of the ONNX model zoo, files exported by this package, and exports of PyTorch
    pytorch     torchvision's AlexNet and VGG-16, from a .pth file or safetensors

Python's unpickler is never used. Any other format is refused, and so are weights whose names or shapes do not all
match the network.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from alexnet.config import backend_of
from alexnet.models import MODELS
from alexnet.native.packages import install
from alexnet.pretrained import native, upstream
from alexnet.pretrained.detect import detect_format
from alexnet.pretrained.weights import Weights, WeightsError, checked, imagenet_names
from alexnet.training.network import Network

__all__ = ["Weights", "WeightsError", "build", "format_of", "imagenet_names", "load", "save"]

SUFFIXES = (".safetensors", ".onnx", ".zip", "")


def load(
    path: str | os.PathLike[str], unflipped: bool = False, epoch: int | None = None, preprocessing: str | None = None
) -> Weights:
    """Load the Weights from a file or folder of any readable format.

    Args:
        path: file or folder.
        unflipped: only for theano_alexnet's format: the filters already are those of a cross-correlation, as trained
            with lib_conv "cudaconvnet".
        epoch: only for theano_alexnet's format: the epoch to load; None for the newest.
        preprocessing: only for files of PyTorch and ONNX, which do not state it: the images that the network takes,
            "torchvision" or "caffe" (alexnet.pretrained.preprocessing).

    Raises:
        WeightsError: the format is unknown, or the weights do not match their network.
    """
    kind, place = detect_format(expanded(path))
    if preprocessing is not None and kind not in ("onnx", "pytorch"):
        raise WeightsError(f"preprocessing is a choice about files of PyTorch and ONNX, and {path} is none")
    if kind == "upstream":
        return upstream.load(place, unflipped, epoch)
    if unflipped or epoch is not None:
        raise WeightsError(f"unflipped filters and epochs are choices about theano_alexnet's sets, and {path} is none")
    return reader_of(kind, preprocessing)(place)


def reader_of(kind: str, preprocessing: str | None = None) -> Callable[[Path], Weights]:
    """Return the function that loads a format other than upstream; raises WeightsError if its library is missing."""
    if kind == "native":
        return native.load
    if kind == "pytorch":
        from alexnet.pretrained import pytorch  # imports zipfile and pickletools, which no other format needs

        return partial(pytorch.load, preprocessing=preprocessing)
    if kind in ("caffe", "npz"):
        from alexnet.pretrained import caffe  # protobuf takes 0.1 s to import, which no other format needs

        return caffe.load if kind == "caffe" else caffe.load_npz
    check_onnx()
    from alexnet.pretrained import onnx  # the package onnx is optional

    return partial(onnx.load, preprocessing=preprocessing)


def save(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write Weights in the format given by the suffix of `path`.

    Args:
        weights: the Weights to write.
        path: ends in .safetensors, .onnx or .zip. A path without a suffix becomes a folder of theano_alexnet's files.

    Raises:
        WeightsError: the weights cannot be written, or `path` exists and is not an empty folder.
    """
    path = expanded(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path} must end in .safetensors, .onnx or .zip, or be a folder's name without an ending")
    writer = writer_of(path.suffix)
    try:
        if path.exists() and not (path.is_dir() and not path.suffix and not any(path.iterdir())):
            raise WeightsError(f"{path} exists already: name a new file or folder, or remove it first")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror}") from error
    writer(checked(weights, "the weights to be saved"), path)


def writer_of(suffix: str) -> Callable[[Weights, Path], None]:
    """Return the function that writes a format; raises WeightsError if its library is missing."""
    if suffix == ".safetensors":
        return native.save
    if suffix != ".onnx":
        return upstream.save
    check_onnx()
    from alexnet.pretrained import onnx  # the package onnx is optional

    return onnx.save


def check_onnx() -> None:
    """Raise WeightsError if the package onnx is not installed."""
    if importlib.util.find_spec("onnx") is None:
        raise WeightsError(f"ONNX needs the package onnx, which is not installed: {install('onnx')}")


def format_of(path: str | os.PathLike[str]) -> str:
    """Return the format of a file or folder: native, upstream, caffe, npz, onnx or pytorch; raises WeightsError."""
    return detect_format(expanded(path))[0]


def expanded(path: str | os.PathLike[str]) -> Path:
    """Replace ~ and ~user with the home folder. The ~ of an unknown user is kept."""
    return Path(os.path.expanduser(path))


def build(
    weights: Weights, backend: str = "auto", precision: str = "float32", device: str = "cpu", crop: bool = True
) -> Network:
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
        model, weights.mean, backend=backend_of(backend, device), crop=crop, precision=precision, device=device,
        scale=weights.scale,
    )
    network.set_parameters(weights.arrays, copy=False)         # without an update rule, nothing changes them
    return network
