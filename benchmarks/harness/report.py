"""The common main program of all benchmarks, and the rows of results.

A row is a dict with the keys name, value (a median), unit, spread ((largest - smallest) / median) and runs. It also has
peer and ratio if it is compared with something. A row that could not be measured has the value None and the reason in
its note. Other keys are further columns of the table.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

COLUMNS = ("name", "value", "unit", "spread", "runs", "peer", "ratio", "peer_is", "note")


class CannotMeasure(Exception):
    """The machine lacks what the whole benchmark needs, for example a GPU."""


def main(rows, description, quick, quick_options=None, add_options=None, worker=None, arguments=None):
    """Run a benchmark: parse the options, print each row as it is measured, and write all rows to --json.

    Args:
        rows: (options) -> iterable of rows.
        description: docstring of the program.
        quick: what --quick does, for --help.
        quick_options: {name: value} of the options that --quick replaces.
        add_options: (parser) -> None: adds the options of this benchmark.
        worker: (*arguments) -> exit status or None: main function of a process that the benchmark starts with
            --worker and its arguments.
        arguments: command line arguments; default: sys.argv.

    Returns:
        Exit status: 0, 1 if rows() raised RuntimeError, or 2 if it raised CannotMeasure.
    """
    options = parse(description, quick, quick_options or {}, add_options, arguments)
    if options.worker is not None:
        return worker(*options.worker) or 0
    measured = []
    try:
        for row in rows(options):
            measured.append(row)
            print(line(row), flush=True)
            write(measured, options.json)        # after each row, because a time limit may kill this process
    except (RuntimeError, CannotMeasure) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, CannotMeasure) else 1
    return 0


def parse(description, quick, quick_options, add_options, arguments=None):
    """Return the options of a benchmark; see main()."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"under a minute: {quick}")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write one JSON object per row")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if add_options:
        add_options(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(quick_options)
    return options


def line(row):
    """Format a row as one line of text."""
    if row["value"] is None:
        return f"{row['name']}: {row['note']}"
    parts = [f"{row['name']:60} {short(row['value']):>9} {row['unit']}"]
    if row.get("runs", 1) > 1:
        parts.append(f"(spread {row['spread']:.0%})")
    if row.get("ratio") is not None:
        parts.append(f"ratio {row['ratio']:.2f} to {row.get('peer_is', 'peer')} {short(row['peer'])}")
    elif row.get("peer") is not None:
        parts.append(f"{row.get('peer_is', 'peer')} {short(row['peer'])}")
    parts += [f"{key} {short(value)}" for key, value in row.items() if key not in COLUMNS and value is not None]
    return "  ".join(parts)


def short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spread(values):
    """(largest - smallest) / median; 0 if all values are equal."""
    difference = max(values) - min(values)
    return difference / statistics.median(values) if difference else 0.0


def row(name, values, unit, **more):
    """Return the row of the values of several runs."""
    values = list(values)
    return {"name": name, "value": statistics.median(values), "unit": unit, "spread": spread(values),
            "runs": len(values), **more}


def compared(row, peer, peer_is=None, faster=False):
    """Return the row with its peer's value and their ratio.

    Args:
        row: a row.
        peer: the peer's value, or the values of its runs.
        peer_is: what the peer is.
        faster: whether the ratio is peer / value, for durations; otherwise value / peer.
    """
    peer = statistics.median(peer) if isinstance(peer, list | tuple) else peer
    ratio = peer / row["value"] if faster else row["value"] / peer
    return row | {"peer": peer, "ratio": ratio} | ({"peer_is": peer_is} if peer_is else {})


def not_measured(name, reason):
    """Return the row of a quantity that could not be measured."""
    return {"name": name, "value": None, "unit": "", "note": reason}


def seconds(call):
    """Return the duration of a call in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def write(rows, path):
    """Write one JSON object per row and line, if `path` is not None."""
    if path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path):
    """Return the rows that write() has written; an empty list if the file does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
