"""Plot the learning curves, the time split and the first-layer filters of one or several runs.

For runs with different numbers of workers, also plot the speed-up relative to the ideal.

    python -m alexnet plot runs/a                                 write to the folder of the run
    python -m alexnet plot runs/a runs/b --over hours             one figure, written to the parent folder
    python -m alexnet plot runs/* --to pictures --format svg
"""

import argparse

from alexnet import plots
from alexnet.data.batch_file import name_of
from alexnet.plots.records import TICKS
from alexnet.plots.style import FORMATS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--over", choices=TICKS, default="epochs", help="x axis of the curves (%(default)s)")
    parser.add_argument("--to", metavar="FOLDER", help="of the pictures; else that of the run, or the parent folder")
    parser.add_argument("--format", type=formats, default=FORMATS, metavar="png,svg", help="one of them or both (both)")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    pictures = plots.draw(options.runs, options.to, options.format, options.over)
    print("\n".join(f"drew {name_of(picture)}" for picture in pictures))
    return 0


def formats(text: str) -> tuple[str, ...]:
    """Parse a list of formats such as png,svg; raises ValueError."""
    chosen = tuple(dict.fromkeys(text.split(",")))
    if not set(chosen) <= set(FORMATS):
        raise ValueError(text)
    return chosen
