"""Print the output shape, parameters and forward multiply-adds per image of each layer, and the totals."""

from alexnet.commands._options import positive
from alexnet.models import MODELS
from alexnet.nn.layers import Auxiliary


def configure(parser):
    parser.add_argument("--model", choices=sorted(MODELS), default="alexnet")
    parser.add_argument("--classes", type=positive, default=1000, metavar="N", help="outputs (%(default)s)")


def run(options):
    print(table(MODELS[options.model](None, options.classes)))
    return 0


def table(model):
    """Return the table of layers as text: name, output shape, parameters, forward multiply-adds per image, totals."""
    shape = (model.channels, model.image_size, model.image_size)
    layers = list(model.describe(shape))
    rows = [("layer", "output", "parameters", "MACs per image"), ("input", size(shape), "", "")]
    rows += [(layer.name, size(layer.shape), count(layer.parameters), count(layer.macs)) for layer in layers]
    totals = (sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers))
    rows.append(("total", "", *map(count, totals)))
    if without := used_elsewhere(model, layers):
        rows.append(("without the auxiliary classifiers", "", *map(count, without)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  {output:<{widths[1]}}  {parameters:>{widths[2]}}  {macs:>{widths[3]}}".rstrip()
        for name, output, parameters, macs in rows
    )


def used_elsewhere(model, layers):
    """Return (parameters, multiply-adds) without the auxiliary classifiers, which only training uses.

    None if the model has no auxiliary classifiers.
    """
    names = tuple(f"{layer.name}." for layer in model.layers if isinstance(layer, Auxiliary))
    kept = [layer for layer in layers if not layer.name.startswith(names)]
    return (sum(layer.parameters for layer in kept), sum(layer.macs for layer in kept)) if names else None


def size(shape):
    return " × ".join(map(str, shape))


def count(number):
    return f"{number:,}" if number else ""
