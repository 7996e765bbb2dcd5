"""Each layer's output shape, parameters and forward multiply-adds per image, and their totals."""

from alexnet.commands.options import positive
from alexnet.models import MODELS


def configure(parser):
    parser.add_argument("--model", choices=sorted(MODELS), default="alexnet")
    parser.add_argument("--classes", type=positive, default=1000, metavar="N", help="outputs (%(default)s)")


def run(options):
    print(table(MODELS[options.model](None, options.classes)))
    return 0


def table(model):
    """The layers of `model` as text: name, output shape, parameters, forward multiply-adds per image, and totals."""
    shape = (model.channels, model.image_size, model.image_size)
    layers = list(model.describe(shape))
    rows = [("layer", "output", "parameters", "MACs per image"), ("input", size(shape), "", "")]
    rows += [(layer.name, size(layer.shape), count(layer.parameters), count(layer.macs)) for layer in layers]
    totals = (sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers))
    rows.append(("total", "", *map(count, totals)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  {output:<{widths[1]}}  {parameters:>{widths[2]}}  {macs:>{widths[3]}}".rstrip()
        for name, output, parameters, macs in rows
    )


def size(shape):
    return " × ".join(map(str, shape))


def count(number):
    return f"{number:,}" if number else ""
