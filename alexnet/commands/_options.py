"""Options shared by several commands: the weights, and the device and backend."""

import argparse
from pathlib import Path

from alexnet import pretrained
from alexnet.data import layout
from alexnet.models import model_class
from alexnet.native import compiler
from alexnet.pretrained.preprocessing import PREPROCESSINGS
from alexnet.training.network import Network


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add --weights and the options that complete them."""
    parser.add_argument("--weights", required=True, metavar="W", help="a run's folder or checkpoint, exported "
                        "safetensors, theano_alexnet's folder or zip, a .caffemodel, ONNX, or PyTorch's .pth")
    parser.add_argument("--mean", metavar="FILE", help="mean image, .npy (3, 256, 256), if the weights have none, or "
                        "to replace it")
    parser.add_argument("--epoch", type=int, metavar="N", help="of theano_alexnet's folder or zip; else the newest")
    parser.add_argument("--model", metavar="MODULE:CLASS", help="import this network from outside the package, "
                        "because the weights name it")
    parser.add_argument("--preprocessing", choices=PREPROCESSINGS, help="images that a network of PyTorch or ONNX "
                        "takes. torchvision: RGB, mean and std of ImageNet; caffe: BGR, 0 to 255, minus the mean")
    parser.add_argument("--unflipped", action="store_true", help="theano_alexnet's filters were trained with lib_conv "
                        "cudaconvnet, so they are those of a cross-correlation already")


def weights_of(options: argparse.Namespace) -> pretrained.Weights:
    """Load the Weights selected by the options; raises WeightsError, ConfigError, DataError."""
    if options.model is not None:
        model_class(options.model)
    weights = pretrained.load(options.weights, options.unflipped, options.epoch, options.preprocessing)
    if options.mean is None:
        return weights
    mean = layout.load_mean(Path(options.mean))
    return weights._replace(mean=mean, origin=f"{weights.origin}; mean image {Path(options.mean).name} instead")


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add --backend, --device, --precision and --threads, which correspond to the settings of the same names."""
    parser.add_argument("--backend", choices=("auto", "cpu", "jax", "numpy"), default="auto")
    parser.add_argument("--device", default="cpu", metavar="cpu|cudaN", help="(%(default)s)")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32",
                        help="of backend jax")
    parser.add_argument("--threads", type=int, metavar="N", help="of the C kernels; default: the number of cores")


def network_of(weights: pretrained.Weights, options: argparse.Namespace) -> Network:
    """Compile the Network of Weights for the selected device; raises WeightsError, ConfigError, ValueError."""
    compiler.use_threads(options.threads)
    return pretrained.build(weights, options.backend, options.precision, options.device)


def positive(text: str) -> int:
    """Parse a command-line argument as an integer of at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
