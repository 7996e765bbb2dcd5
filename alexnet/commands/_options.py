"""Options shared by several commands: the weights, and the device and backend."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from alexnet import pretrained
from alexnet.data import layout
from alexnet.data.augment import RESIZES
from alexnet.data.batch_file import DataError, name_of, one_line
from alexnet.data.image_formats import is_url
from alexnet.models import model_class
from alexnet.native import compiler
from alexnet.native.console import note
from alexnet.native.untrusted import parse_json
from alexnet.pretrained.preprocessing import PREPROCESSINGS
from alexnet.training.network import Network

NPY = b"\x93NUMPY"                               # first bytes of a .npy file
PHOTOGRAPHS_BGR = (104, 117, 123)                # channel means of ImageNet, grey levels
LARGEST_DISTANCE = 30                            # of a mean image of photographs from these, grey levels
LEAST_RISE = 10                                  # from the first to the last channel, grey levels


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add --weights and the options that complete them."""
    parser.add_argument("--weights", required=True, metavar="W", help="a run's folder or checkpoint, exported "
                        "safetensors, theano_alexnet's folder or zip, a .caffemodel, ONNX, or PyTorch's .pth")
    parser.add_argument("--mean", metavar="FILE", help="mean image, .npy (3, 256, 256) or Caffe's .binaryproto, if the "
                        "weights have none, or to replace it")
    parser.add_argument("--mean-order", choices=("rgb", "bgr"), help="order of its channels (rgb; .binaryproto: bgr)")
    parser.add_argument("--resize", choices=RESIZES, help="squash: whole images to 256 x 256; crop: their central "
                        "square; shorter: the shorter side to 256, then the central square; else that of the weights")
    parser.add_argument("--class-names", metavar="FILE", help="a name on each line, or a JSON list, or a data set's "
                        "manifest.json; else those of the weights")
    parser.add_argument("--epoch", type=int, metavar="N", help="of theano_alexnet's folder or zip; else the newest")
    parser.add_argument("--model", metavar="MODULE:CLASS", help="import this network from outside the package, "
                        "because the weights name it")
    parser.add_argument("--preprocessing", choices=PREPROCESSINGS, help="images that a network of PyTorch or ONNX "
                        "takes. torchvision: RGB, mean and std of ImageNet; caffe: BGR, 0 to 255, minus the mean")
    parser.add_argument("--unflipped", action="store_true", help="theano_alexnet's filters were trained with lib_conv "
                        "cudaconvnet, so they are those of a cross-correlation already")


def weights_of(options: argparse.Namespace) -> pretrained.Weights:
    """Load the Weights selected by the options; raises WeightsError, ConfigError, DataError, ValueError."""
    if options.model is not None:
        model_class(options.model)
    if is_url(options.weights):
        raise ValueError(f"--weights {options.weights} is a URL; download the file and pass its path")
    if options.mean_order and options.mean is None:
        raise ValueError(f"--mean-order {options.mean_order} describes the file of --mean, which is not given")
    weights = pretrained.load(options.weights, options.unflipped, options.epoch, options.preprocessing)
    if options.mean is not None:
        mean, order = mean_of(Path(options.mean), options.mean_order)
        name = Path(options.mean).name + (" in BGR order" if order == "bgr" else "")
        weights = weights._replace(mean=mean, origin=f"{weights.origin}; mean image {name} instead")
    if options.resize is not None:
        weights = weights._replace(resize=options.resize)
    if options.class_names is not None:
        file = Path(options.class_names)
        names = class_names_of(file, weights.classes)
        weights = weights._replace(class_names=names, origin=f"{weights.origin}; class names of {file.name}")
    if weights.mean is not None and not options.mean_order and rises(weights.mean):
        values = ", ".join(f"{value:.1f}" for value in weights.mean.mean(axis=(1, 2)))
        cure = "pass --mean-order" if options.mean else "pass the mean image with --mean FILE --mean-order"
        note(f"the channel means of the mean image rise: {values}; those of RGB photographs fall, so it may be in the "
             f"order BGR; {cure} bgr if so, or --mean-order rgb if not")
    return weights


def mean_of(file: Path, order: str | None) -> tuple[np.ndarray, str]:
    """Return (mean image, RGB, float32; the order of its channels in the file).

    Args:
        file: .npy, or Caffe's .binaryproto; the content decides.
        order: order of the channels in the file: "rgb", "bgr", or None: "rgb" in .npy, "bgr" in .binaryproto.

    Raises:
        DataError, WeightsError: the file holds no mean image.
    """
    if file.is_file() and not starts_with(file, NPY) and file.suffix != ".npy":
        from alexnet.pretrained.caffe import mean as caffe  # protobuf takes 0.1 s to import and is rarely needed

        mean = caffe.read_mean(file)             # reversed to RGB
        return (mean[::-1].copy(), "rgb") if order == "rgb" else (mean, "bgr")
    mean = layout.load_mean(file)
    return (mean[::-1].copy(), "bgr") if order == "bgr" else (mean, "rgb")


def starts_with(file: Path, signature: bytes) -> bool:
    """Whether a file starts with these bytes."""
    with file.open("rb") as opened:
        return opened.read(len(signature)) == signature


def rises(mean: np.ndarray) -> bool:
    """Whether the channel means of a mean image rise, as those of photographs in the order BGR."""
    channels = mean.mean(axis=(1, 2))
    near = np.abs(channels - np.array(PHOTOGRAPHS_BGR)).max() < LARGEST_DISTANCE
    return bool(near and channels[0] < channels[1] < channels[2] and channels[2] - channels[0] > LEAST_RISE)


def class_names_of(file: Path, classes: int) -> tuple[str, ...]:
    """Return the class names in a file, in the order of the labels.

    The file holds a name on each line; or JSON: a list of names, a manifest with "class_names", or a mapping from "0",
    "1" … to a name or to [wnid, words], as Keras and torchvision publish it.

    Raises:
        DataError: the file holds no such list, or not `classes` names.
    """
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
        found = parse_json(text) if text[:1] in ("[", "{") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{name_of(file)} is no list of class names: {one_line(error)}") from error
    names = listed_names(found)
    if names is None:
        raise DataError(f"{name_of(file)} is no list of class names: expected a name on each line, a JSON list of "
                        "texts, or a manifest with class_names")
    if len(names) != classes:
        raise DataError(f"{name_of(file)} holds {len(names):,} class names, and the weights have {classes:,} classes")
    if "" in names:
        raise DataError(f"{name_of(file)} has no name for class {names.index('')}")
    return tuple(names)


def listed_names(found: Any) -> list[str] | None:
    """Return the class names in a list or in parsed JSON; None if it has another form. See class_names_of."""
    if isinstance(found, dict):
        numbered = [found.get(str(label)) for label in range(len(found))]
        found = found.get("class_names") if None in numbered else numbered
    if not isinstance(found, list):
        return None
    names = [" ".join(name) if isinstance(name, list) and all(isinstance(part, str) for part in name) else name
             for name in found]
    return names if all(isinstance(name, str) for name in names) else None


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add --backend, --device, --precision and --threads, which correspond to the settings of the same names."""
    parser.add_argument("--backend", choices=("auto", "cpu", "jax", "numpy"), default="auto")
    parser.add_argument("--device", default="cpu", metavar="cpu|cudaN", help="(%(default)s)")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32",
                        help="of backend jax")
    parser.add_argument("--threads", type=int, metavar="N", help="of the C kernels; default: the number of cores")


def network_of(weights: pretrained.Weights, options: argparse.Namespace, crop: bool = True) -> Network:
    """Compile the Network of Weights for the selected device; raises WeightsError, ConfigError, ValueError.

    Args:
        crop: crop the images in the graph (alexnet.training.network.Network).
    """
    compiler.use_threads(options.threads)
    return pretrained.build(weights, options.backend, options.precision, options.device, crop)


def positive(text: str) -> int:
    """Parse a command-line argument as an integer of at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
