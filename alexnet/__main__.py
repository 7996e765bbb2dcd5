"""Commands about a network and a run.

    python -m alexnet summary [--model alexnet] [--classes 1000]     layers, shapes, parameters, multiply-adds
    python -m alexnet plot RUN                                       draw a run's curves and filters again
"""

import argparse
import sys

import numpy as np

from alexnet.models import MODELS
from alexnet.plots import draw


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m alexnet", description="About a network, and about a run.")
    commands = parser.add_subparsers(dest="command", required=True)
    summary = commands.add_parser("summary", help="each layer's output shape, parameters and multiply-adds")
    summary.add_argument("--model", choices=sorted(MODELS), default="alexnet")
    summary.add_argument("--classes", type=int, default=1000)
    plot = commands.add_parser("plot", help="draw a run's learning curves and first filters again")
    plot.add_argument("run", metavar="RUN", help="folder of the run")
    options = parser.parse_args(arguments)
    try:
        if options.command == "summary":
            print(table(MODELS[options.model](np.random.default_rng(), options.classes)))
        else:
            print("\n".join(f"drew {picture}" for picture in draw(options.run)))
    except (OSError, ValueError) as error:
        print(f"{parser.prog} {options.command}: {error}", file=sys.stderr)
        return 2
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
