"""What every benchmark has: --quick, --json FILE, and rows.

A row is a dict: name, value, unit, spread ((largest - smallest) / median), and peer and ratio where it is held against
something.
"""

import argparse
import json
import pathlib


def parser(description, quick):
    """An ArgumentParser with the options that all share; quick says what --quick does."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--quick", action="store_true", help=f"under a minute: {quick}")
    made.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write one JSON object per row")
    return made


def write(rows, path):
    """One JSON object per line, if a path was given."""
    if path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
