"""Print the output shape, parameters and forward multiply-adds per image of each layer, and the totals."""

import argparse
from collections.abc import Sequence

from alexnet.commands._options import positive
from alexnet.models import MODELS, Model, model_class
from alexnet.nn import LayerSummary


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    names = ", ".join(MODELS)
    parser.add_argument("--model", default="alexnet", metavar="NAME", help=f"{names}, or module:Class (%(default)s)")
    parser.add_argument("--classes", type=positive, default=1000, metavar="N", help="outputs (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Print the table of a model; raises ConfigError for an unknown one."""
    print(table(model_class(options.model)(None, options.classes)))
    return 0


def table(model: Model) -> str:
    """Return the table of layers as text: name, output shape, parameters, forward multiply-adds per image, totals."""
    shape = (model.channels, model.image_size, model.image_size)
    layers = list(model.describe(shape))
    rows: list[tuple[str, ...]] = [("layer", "output", "parameters", "MACs per image"), ("input", size(shape), "", "")]
    rows += [(layer.name, size(layer.shape), count(layer.parameters), count(layer.macs)) for layer in layers]
    rows.append(("total", "", *map(count, totals(layers))))
    if model.auxiliaries:
        rows.append(("without the auxiliary classifiers", "", *map(count, totals_of_inference(model, layers))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  {output:<{widths[1]}}  {parameters:>{widths[2]}}  {macs:>{widths[3]}}".rstrip()
        for name, output, parameters, macs in rows
    )


def totals_of_inference(model: Model, layers: Sequence[LayerSummary]) -> tuple[int, int]:
    """Return the totals without the auxiliary classifiers, which only training uses."""
    names = tuple(f"{layer.name}." for layer in model.auxiliaries)
    return totals([layer for layer in layers if not layer.name.startswith(names)])


def totals(layers: Sequence[LayerSummary]) -> tuple[int, int]:
    """Return (parameters, multiply-adds per image)."""
    return sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)


def size(shape: Sequence[int]) -> str:
    """Format a shape: 96 × 55 × 55."""
    return " × ".join(map(str, shape))


def count(number: int) -> str:
    """Format a number with thousands separators; empty if it is 0."""
    return f"{number:,}" if number else ""
