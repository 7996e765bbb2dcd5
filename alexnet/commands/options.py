"""Options that several commands share: which weights, and on what they are computed."""

import argparse
from pathlib import Path

from alexnet import folders, pretrained
from alexnet.compile import use_machine


def add_weights(parser):
    """--weights and what may be missing in them."""
    parser.add_argument("--weights", required=True, metavar="W", help="a run's folder or checkpoint, exported "
                        "safetensors, theano_alexnet's folder or zip, a .caffemodel, or ONNX")
    parser.add_argument("--mean", metavar="FILE", help="mean image, .npy (3, 256, 256), where the weights have none or "
                        "not that one")
    parser.add_argument("--epoch", type=int, metavar="N", help="of theano_alexnet's folder or zip; else the newest")
    parser.add_argument("--unflipped", action="store_true", help="theano_alexnet's filters were trained with lib_conv "
                        "cudaconvnet: they are a correlation's already")


def weights_of(options):
    """The Weights that were asked for; raises WeightsError, DataError."""
    weights = pretrained.load(options.weights, options.unflipped, options.epoch)
    if options.mean is None:
        return weights
    mean = folders.load_mean(Path(options.mean))
    return weights._replace(mean=mean, origin=f"{weights.origin}; mean image {options.mean} instead")


def add_machine(parser):
    """Engine, device, precision and threads, as the settings of the same names."""
    parser.add_argument("--engine", choices=("auto", "cpu", "jax", "reference"), default="auto")
    parser.add_argument("--device", default="cpu", metavar="cpu|cudaN", help="(%(default)s)")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32", help="of engine jax")
    parser.add_argument("--threads", type=int, metavar="N", help="of the C kernels; as many as there are cores")


def network_of(weights, options):
    """The Network of Weights on the machine that was asked for; raises WeightsError, ConfigError, ValueError."""
    use_machine(options.threads, "auto")
    return pretrained.build(weights, options.engine, options.precision, options.device)


def positive(text):
    """A whole number of at least 1, of a command line."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
