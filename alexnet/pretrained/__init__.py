"""Trained weights of others and of ours: load any kind, told apart by its content, and save what others read.

    own        a run's folder, its checkpoints, and exported weights: safetensors with checksums
    upstream   theano_alexnet's folder or zip of W_0_65.npy, W0_1_65.npy …
    caffe      bvlc_reference_caffenet.caffemodel and bvlc_alexnet.caffemodel
    onnx       AlexNet and CaffeNet of the ONNX model zoo, and our exports

Nothing is unpickled; whatever is not one of these, or does not fit its network in every name and shape, is refused.
"""

import pkgutil
from pathlib import Path

from alexnet.compile import Network, engine_of
from alexnet.models import MODELS
from alexnet.pretrained.weights import Weights, WeightsError, imagenet_names

__all__ = ["FORMATS", "Weights", "WeightsError", "build", "imagenet_names", "kind_of", "load", "save"]

# by name: a format's library is imported by those who use it
FORMATS = {
    "own": "alexnet.pretrained.own",
    "upstream": "alexnet.pretrained.upstream",
    "caffe": "alexnet.pretrained.caffe",
    "onnx": "alexnet.pretrained.onnx",
}
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def load(path):
    """The Weights in a file or folder, of any of the FORMATS; raises WeightsError for all else."""
    path = Path(path).expanduser()
    return pkgutil.resolve_name(FORMATS[kind_of(path)]).load(path)


def save(weights, path):
    """Write Weights so that others can read them: PATH.safetensors, PATH.onnx, or theano_alexnet's files in a folder
    or PATH.zip; raises WeightsError."""
    path = Path(path).expanduser()
    kinds = {".safetensors": "own", ".onnx": "onnx", ".zip": "upstream", "": "upstream"}
    if path.suffix not in kinds:
        raise WeightsError(f"{path} must end in .safetensors, .onnx or .zip, or be a folder's name without an ending")
    pkgutil.resolve_name(FORMATS[kinds[path.suffix]]).save(weights, path)


def kind_of(path):
    """Which of FORMATS a file or folder is, by its content; raises WeightsError."""
    if path.is_dir():
        if any(path.glob("*.npy")):
            return "upstream"
        if any(path.glob("checkpoint_*.safetensors")):
            return "own"
        raise WeightsError(f"{path} is a folder without checkpoints of a run and without theano_alexnet's .npy files")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise WeightsError(f"there are no weights {path}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if head[8:9] == b"{":
        return "own"
    if head.startswith(b"PK"):
        return "upstream"
    if head.startswith(PICKLES):
        raise WeightsError(f"{path} is a pickle, which is never read, for it may run code; save its arrays instead")
    if head[:1] == b"\x08":                      # ModelProto begins with ir_version, a number
        return "onnx"
    if head[:1] == b"\x0a":                      # NetParameter begins with name, a text
        return "caffe"
    raise WeightsError(
        f"{path} is none of the weights that are read: safetensors of a run, theano_alexnet's folder or zip of .npy "
        "files, a .caffemodel, or ONNX"
    )


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
