"""Common parts of all benchmarks: the options --quick and --json FILE, and the rows of results.

A row is a dict with the keys name, value (a median), unit, spread ((largest - smallest) / median) and runs. It also has
peer and ratio if it is compared with something. A row that could not be measured has the value None and the reason in
its note. Other keys are further columns of the table.
"""

import argparse
import json
import pathlib
import statistics


def parser(description, quick):
    """Return an ArgumentParser with the common options; `quick` describes what --quick does."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--quick", action="store_true", help=f"under a minute: {quick}")
    made.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write one JSON object per row")
    return made


def spread(values):
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def row(name, values, unit, **more):
    """Return the row of the values of several runs."""
    values = list(values)
    return {"name": name, "value": statistics.median(values), "unit": unit, "spread": spread(values),
            "runs": len(values), **more}


def not_measured(name, reason):
    """Return the row of a quantity that could not be measured."""
    return {"name": name, "value": None, "unit": "", "note": reason}


def write(rows, path):
    """Write one JSON object per row and line, if `path` is not None."""
    if path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path):
    """Return the rows that write() has written; an empty list if the file does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
