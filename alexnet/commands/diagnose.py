"""Find out why runs have failed or will fail, from their records.

A run that trains logs the same findings as warnings. Causes and remedies: docs/diagnosis.md.

    python -m alexnet diagnose runs/a
"""

import argparse
from pathlib import Path

from alexnet.data.batch_file import name_of
from alexnet.native.untrusted import InputError
from alexnet.plots.records import classes_of, settings_of
from alexnet.run.recorder import read_records
from alexnet.training.diagnosis import Detector

MOST_EPOCHS, MOST_ITERATIONS = 1_000_000, 1e15   # more are those of damaged records


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    for folder in map(Path, options.runs):
        print("\n".join(findings_of(folder)) or f"{name_of(folder)}: no cause of failure found")
    return 0


def findings_of(folder: Path) -> list[str]:
    """Return a line for each finding in the records of a run.

    Raises:
        FileNotFoundError, ValueError: the records cannot be read.
        ValueError: the run has no checkpoint, which states the number of classes.
    """
    records = read_records(folder)
    steps = [record for record in records if record["kind"] == "train"]
    if not steps:
        return []
    classes = settings_of(folder).get("classes") or classes_of(folder)
    if not isinstance(classes, int) or classes < 2:
        raise InputError(f"{name_of(folder)} has no checkpoint, which would state the number of classes")
    steps_of_epoch = steps[-1]["iteration"] / (steps[-1]["epoch"] or 1)
    epochs = min(max(settings_of(folder).get("n_epochs", 1), 1), MOST_EPOCHS)
    detector = Detector(classes, round(min(epochs * steps_of_epoch, MOST_ITERATIONS)))
    found = (finding for record in records for finding in detector.add(record))
    return [f"{name_of(folder)}, iteration {finding.iteration}: {finding.text}" for finding in found]
