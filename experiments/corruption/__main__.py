"""Flip one random bit at a random moment in each place, and report what was detected.

python -m experiments.corruption [--flips 100] [--places NAME ...] [--json FILE] [--without-checks]

A place is chosen by a part of its name. The results of each place are written to the file as soon as it is complete; a
call with a file of earlier results continues with the other places. --without-checks does not compare the sums of the
state of the workers (multigpu.rules.state_check), as before they were introduced; it affects the places in memory.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

from alexnet.native import atomic, compiler
from experiments.asgd.pool import show
from experiments.corruption import files, memory, messages
from experiments.corruption.outcome import KINDS, Outcome


def places(folder, checks):
    """Return {name: function of the seeds that yields an Outcome for each}."""
    found = {name: lambda seeds, name=name: memory.trials(name, seeds, checks) for name in memory.PLACES}
    found |= {name: lambda seeds, name=name: messages.trials(name, seeds) for name in messages.PLACES}
    return found | {name: lambda seeds, name=name: files.trials(name, seeds, folder) for name in files.PLACES}


def row(name, outcomes):
    """Return the row of a place in the table."""
    counts = [sum(outcome.kind == kind for outcome in outcomes) for kind in KINDS]
    changes = [outcome.change for outcome in outcomes if outcome.change is not None]
    errors = [100 * abs(outcome.error) for outcome in outcomes if outcome.error is not None]
    effect = f"{statistics.median(changes):.0e} | {max(changes):.0e} | {max(errors):.1f}" if changes else "| |"
    return f"| {name} | {' | '.join(map(str, counts))} | {effect} |".replace("  ", " ")


def table(results):
    """Return the table of all places."""
    head = "| place | detected | harmless | silent | median change | largest change | error, points |"
    rows = [row(name, [Outcome(*outcome) for outcome in outcomes]) for name, outcomes in results.items()]
    return "\n".join([head, "|---|---:|---:|---:|---:|---:|---:|", *rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=100, help="in each place")
    parser.add_argument("--places", nargs="+", default=[""], metavar="NAME", help="parts of the names of places")
    parser.add_argument("--json", type=pathlib.Path, help="file of the results")
    parser.add_argument("--without-checks", action="store_true")
    options = parser.parse_args()
    compiler.use_threads(1)
    results = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, trials in places(folder, not options.without_checks).items():
            if len(results.get(name, ())) >= options.flips or not any(part in name for part in options.places):
                continue
            results[name] = list(trials(range(options.flips)))
            show(row(name, results[name]))
            if options.json:
                atomic.write(options.json, json.dumps(results, indent=0) + "\n")
    show(table(results))


if __name__ == "__main__":
    main()
