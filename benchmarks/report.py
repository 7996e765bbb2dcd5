"""What every benchmark has: --quick, --json FILE, and rows.

A row is a dict: name, value (a median), unit, spread ((largest - smallest) / median), runs, and peer and ratio where it
is held against something.  A row that could not be measured has the value None and says why in its note.  Other keys
are columns of the table.
"""

import argparse
import json
import pathlib
import statistics


def parser(description, quick):
    """An ArgumentParser with the options that all share; quick says what --quick does."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--quick", action="store_true", help=f"under a minute: {quick}")
    made.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write one JSON object per row")
    return made


def spread(values):
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def row(name, values, unit, **more):
    """The row of some runs' values."""
    values = list(values)
    return {"name": name, "value": statistics.median(values), "unit": unit, "spread": spread(values),
            "runs": len(values), **more}


def not_measured(name, reason):
    """The row of what this machine cannot measure."""
    return {"name": name, "value": None, "unit": "", "note": reason}


def write(rows, path):
    """One JSON object per line, if a path was given."""
    if path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path):
    """The rows that write() wrote; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
