"""Write trained weights, of any kind that is read, so that others can read them.

    python -m alexnet export --weights runs/alexnet --to alexnet.safetensors     one file with checksums
    python -m alexnet export --weights runs/alexnet --to alexnet.onnx            for onnxruntime and its like
    python -m alexnet export --weights runs/alexnet --to alexnet.zip             theano_alexnet's W_0_65.npy …
    python -m alexnet export --weights runs/alexnet --to alexnet                 the same in a folder

What is there already is not replaced.
"""

from pathlib import Path

from alexnet import pretrained
from alexnet.commands.options import add_weights, weights_of
from alexnet.hkl import name_of


def configure(parser):
    add_weights(parser)
    parser.add_argument("--to", required=True, metavar="OUT", help="OUT.safetensors, OUT.onnx, OUT.zip, or a folder")


def run(options):
    weights = weights_of(options)
    pretrained.save(weights, options.to)
    parameters = sum(array.size for array in weights.arrays.values())
    mean = "with" if weights.mean is not None else "without"
    print(name_of(
        f"wrote {options.to}, {size_of(Path(options.to).expanduser()) / 1e6:.1f} MB: {weights.model}, "
        f"{parameters:,} parameters, {weights.classes} classes, {mean} mean image; from {weights.origin}"
    ))  # fmt: skip
    return 0


def size_of(path):
    """Bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
