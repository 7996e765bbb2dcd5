"""Write report.html of one or several runs again, from the records and report.safetensors in their folders.

A run that trains rewrites its report after epochs. This command is for runs whose report was deleted, and for
folders that were moved.

    python -m alexnet report runs/a
"""

import argparse

from alexnet.data.batch_file import name_of
from alexnet.plots.report.run_report import write_report


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    for folder in options.runs:
        print(f"wrote {name_of(write_report(folder))}")
    return 0
