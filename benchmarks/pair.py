"""Compare two Pythons or two checkouts: training step, validation step, and time from start to the first step.

python -m benchmarks.pair A B [--quick] [--json FILE] [--batch 16 128] [--runs 15] [--starts 7]

A and B are PYTHON or PYTHON@CHECKOUT: an interpreter with the requirements installed, and the folder of the checkout
that it runs (default: this one). The ratio is B's median seconds divided by A's: above 1, A is faster. The order of A
and B alternates between rounds. A start is a run of train.py on synthetic data with a separate kernel cache, first
empty (cold), then filled (warm).
"""

import contextlib
import pathlib
import statistics
import tempfile
from typing import NamedTuple

from benchmarks import report, startup
from benchmarks.program import Program, warm_up

KINDS = ("validate", "train")


class Side(NamedTuple):
    """An interpreter and the checkout that it runs."""

    python: str
    checkout: pathlib.Path

    @classmethod
    def parse(cls, text: str) -> "Side":
        """Return the Side for PYTHON or PYTHON@CHECKOUT.

        Raises:
            ValueError: CHECKOUT contains no train.py.
        """
        python, _, folder = text.partition("@")
        checkout = pathlib.Path(folder).resolve() if folder else startup.TOP
        if not (checkout / "train.py").exists():
            raise ValueError(f"{folder} is no checkout: it has no train.py")
        return cls(str(pathlib.Path(python).absolute()), checkout)

    def steps(self, batch: int) -> Program:
        """Start the process that runs training and validation steps of `batch` images; return its Program."""
        return Program(
            "benchmarks.step", "--batch", batch, "--serve", "ours", python=self.python, folder=self.checkout,
            variables={"PYTHONPATH": str(self.checkout)},
        )


def in_turn(sides, measure, runs):
    """Call measure(side, run) `runs` times for each side, in alternating order; return the results of each side."""
    results = tuple([] for _ in sides)
    for run in range(runs):
        for number in (0, 1) if run % 2 else (1, 0):
            results[number].append(measure(sides[number], run))
    return results


def step_rows(sides, batch, runs):
    """Yield one row per kind of step, in images per second."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(side.steps(batch)) for side in sides]
        for kind in KINDS:
            for _ in range(2):
                warm_up(programs, kind)
            ours, theirs = in_turn(programs, lambda program, _, kind=kind: program.step(kind)[0], runs)
            ratio = statistics.median(theirs) / statistics.median(ours)
            yield report.row(
                f"{kind} step, batch {batch}", [batch / seconds for seconds in ours], "images/s",
                peer=batch / statistics.median(theirs), ratio=ratio,
            )


def start_rows(sides, batch, runs):
    """Yield rows of the seconds from the start of train.py until the network is compiled, cold and warm."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        startup.make_data(folder / "data", batch)

        def start(side, run, state):
            output = folder / f"{state}{run}{sides.index(side)}"
            output.mkdir()
            cache = folder / f"cache{run}{sides.index(side)}"
            return startup.start(folder / "data", output, cache, batch, side.python, side.checkout)[0]

        for state in ("cold", "warm"):
            ours, theirs = in_turn(sides, lambda side, run, state=state: start(side, run, state), runs)
            peer = statistics.median(theirs)
            yield report.row(
                f"{state} start to the first step", ours, "s", peer=peer, ratio=peer / statistics.median(ours)
            )


def all_rows(sides, options):
    """Yield every row as soon as it is measured."""
    for batch in options.batch:
        yield from step_rows(sides, batch, options.runs)
    yield from start_rows(sides, min(options.batch), options.starts)


def main():
    parser = report.parser(__doc__, quick="batch 4, 2 runs, 1 start")
    parser.add_argument("sides", nargs=2, type=Side.parse, metavar="PYTHON[@CHECKOUT]")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--starts", type=int, default=7)
    options = parser.parse_args()
    if options.quick:
        options.batch, options.runs, options.starts = [4], 2, 1
    results = []
    print(f"{'':34} {'A':>8} {'B':>8} {'':9} {'spread':>7} {'ratio':>6}")
    for row in all_rows(options.sides, options):
        results.append(row)
        print(f"{row['name']:34} {row['value']:8.2f} {row['peer']:8.2f} {row['unit']:9} {row['spread']:7.1%} "
              f"{row['ratio']:6.3f}", flush=True)
        report.write(results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
