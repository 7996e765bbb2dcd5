"""Convert trained weights of any supported format to safetensors, ONNX or theano_alexnet's files.

    python -m alexnet export --weights runs/alexnet --to alexnet.safetensors     one file with checksums
    python -m alexnet export --weights runs/alexnet --to alexnet.onnx            for onnxruntime and other runtimes
    python -m alexnet export --weights runs/alexnet --to alexnet.zip             theano_alexnet's W_0_65.npy …
    python -m alexnet export --weights runs/alexnet --to alexnet                 the same in a folder

Existing files are not overwritten.
"""

import argparse
from pathlib import Path

from alexnet import pretrained
from alexnet.commands._options import add_weights, weights_of
from alexnet.data.batch_file import name_of
from alexnet.pretrained.assumptions import input_line


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_weights(parser)
    parser.add_argument("--to", required=True, metavar="OUT", help="OUT.safetensors, OUT.onnx, OUT.zip, or a folder")


def run(options: argparse.Namespace) -> int:
    """Convert the weights; raises WeightsError, DataError."""
    weights = weights_of(options)
    pretrained.save(weights, options.to)
    parameters = sum(array.size for array in weights.arrays.values())
    mean = "with" if weights.mean is not None else "without"
    print(input_line(weights))
    print(name_of(
        f"wrote {options.to}, {size_of(Path(options.to).expanduser()) / 1e6:.1f} MB: {weights.model}, "
        f"{parameters:,} parameters, {weights.classes} classes, {mean} mean image; from {weights.origin}"
    ))
    return 0


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
