"""Plot the learning curves, the time split and the first-layer filters of one or several runs.

For runs with different numbers of workers, also plot the speed-up relative to the ideal.

    python -m alexnet plot runs/a                                 write to the folder of the run
    python -m alexnet plot runs/a runs/b --over hours             one figure, written to runs/compared/a+b
    python -m alexnet plot runs/* --to pictures --format pdf      files and other folders are skipped
"""

import argparse
import sys

from alexnet.data.batch_file import name_of
from alexnet.plots import drawing
from alexnet.plots.records import TICKS, runs_among
from alexnet.plots.style import FORMATS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--over", choices=TICKS, default="epochs",
                        help="x axis of the curves; hours: minutes if the runs are short (default: %(default)s)")
    parser.add_argument("--to", metavar="FOLDER", help="of the pictures (default: that of the run; for several runs, "
                        "a folder in `compared` beside them)")
    parser.add_argument("--format", type=formats, default=("png", "svg"), metavar=",".join(FORMATS),
                        help="one or several of them (default: png,svg)")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    runs, others = runs_among(options.runs)
    if others:
        print(f"skipped, because they are no folders of runs: {', '.join(map(name_of, others))}", file=sys.stderr)
    pictures = drawing.draw(runs, options.to, options.format, options.over)
    print("\n".join(f"drew {name_of(picture)}" for picture in pictures))
    return 0


def formats(text: str) -> tuple[str, ...]:
    """Parse a list of formats such as png,svg."""
    chosen = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in chosen if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"must be {', '.join(FORMATS)}, or several of them, got {unknown[0]!r}")
    return chosen
