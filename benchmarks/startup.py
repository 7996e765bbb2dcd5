"""Time from the start of train.py to the first training step, with an empty and with a filled kernel cache.

python -m benchmarks.startup [--quick] [--json FILE] [--batch 128] [--runs 5]
                             [--compare PYTHON[@CHECKOUT] PYTHON[@CHECKOUT]]

The benchmark starts a run of one iteration on synthetic batch files and reads its output. It measures the seconds until
train.py prints that the network is compiled, which is when the first step begins, and until it prints the first
iteration. Cold means that the folder of compiled kernels is empty. The library files are in the page cache in both
cases.

With --compare it compares two interpreters or two checkouts: training step, validation step and both starts. PYTHON is
an interpreter with the requirements installed, CHECKOUT the folder of the checkout that it runs (default: this one).
The order of the two alternates between rounds. The ratio is the second one's seconds divided by the first one's.
"""

import contextlib
import functools
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from alexnet.data import batch_file
from benchmarks.harness import report
from benchmarks.harness.program import CORES, TOP, Program, environment, warm_up


def make_data(folder, images):
    """Write a data set of one training file and one validation file, of `images` images each."""
    rng = np.random.default_rng(0)
    for part in ("labels", "misc"):
        (folder / part).mkdir(parents=True)
    for name in ("train", "val"):
        (folder / f"{name}_hkl").mkdir()
        pixels = rng.integers(0, 256, (3, 256, 256, images), dtype=np.uint8)
        batch_file.write(folder / f"{name}_hkl" / "0000.hkl", pixels)
        np.save(folder / "labels" / f"{name}_labels.npy", rng.integers(0, 10, images))
    np.save(folder / "misc" / "img_mean.npy", np.full((3, 256, 256), 110, "float32"))


def start(data, output, cache, batch, python=sys.executable, top=TOP):
    """Run train.py of the checkout `top`; return the seconds until the first step begins and until it ends."""
    settings = [f"data={data}", f"output={output}", f"batch_size={batch}", "n_iterations=1", "print_freq=1"]
    began, seen = time.perf_counter(), {}
    command = [python, "-u", str(top / "train.py"), *settings, "validation=false"]
    variables = {"ALEXNET_CACHE": str(cache), "PYTHONPATH": str(top)}
    with subprocess.Popen(
        command, env=environment() | variables, cwd=output, text=True, stdout=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            for sign in ("compiled in", "iteration 1"):
                if line.startswith(sign):
                    seen[sign] = time.perf_counter() - began
    if process.returncode or len(seen) < 2:
        raise RuntimeError(f"{' '.join(command)} exited with status {process.returncode} after {list(seen)}")
    return seen["compiled in"], seen["iteration 1"]


def start_rows(batch, runs):
    """Yield the rows of cold and warm starts."""
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_data(folder / "data", batch)
        for run in range(runs):
            for state in ("cold", "warm"):
                output = folder / f"{state}{run}"
                output.mkdir()
                first, done = start(folder / "data", output, folder / f"cache{run}", batch)
                times.setdefault(f"{state} start to the first step", []).append(first)
                times.setdefault(f"{state} start to the end of it", []).append(done)
    for name, values in times.items():
        yield report.row(f"{name}, batch {batch}", values, "s", smallest=min(values))


# ---- two interpreters or checkouts


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
        checkout = pathlib.Path(folder).resolve() if folder else TOP
        if not (checkout / "train.py").exists():
            raise ValueError(f"{folder} is no checkout: it has no train.py")
        return cls(str(pathlib.Path(python).absolute()), checkout)

    def steps(self, batch):
        """Return the Program that runs training and validation steps of `batch` images."""
        arguments = "--worker", "ours", batch, CORES
        variables = {"PYTHONPATH": str(self.checkout)}
        return Program("benchmarks.step", *arguments, python=self.python, folder=self.checkout, variables=variables)


def alternate(sides, measure, runs):
    """Call measure(side, run) `runs` times for each side, in alternating order; return the results of each side."""
    results = tuple([] for _ in sides)
    for run in range(runs):
        for number in (0, 1) if run % 2 else (1, 0):
            results[number].append(measure(sides[number], run))
    return results


def comparison_rows(sides, batch, runs):
    """Yield the rows of both kinds of step, in images per second, and of cold and warm starts, in seconds."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(side.steps(batch)) for side in sides]
        for kind in ("validate", "train"):
            for _ in range(2):
                warm_up(programs, kind)
            first, second = alternate(programs, lambda program, _, kind=kind: program.step(kind)[0], runs)
            row = report.row(f"{kind} step, batch {batch}", [batch / seconds for seconds in first], "images/s")
            yield report.compared(row, batch / statistics.median(second))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_data(folder / "data", batch)

        def measure(state, side, run):
            output = folder / f"{state}{run}{sides.index(side)}"
            output.mkdir()
            cache = folder / f"cache{run}{sides.index(side)}"
            return start(folder / "data", output, cache, batch, side.python, side.checkout)[0]

        for state in ("cold", "warm"):
            first, second = alternate(sides, functools.partial(measure, state), runs)
            yield report.compared(report.row(f"{state} start to the first step", first, "s"), second, faster=True)


def rows(options):
    if options.compare:
        return comparison_rows(options.compare, options.batch, options.runs)
    return start_rows(options.batch, options.runs)


def add_options(parser):
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compare", nargs=2, type=Side.parse, metavar="PYTHON[@CHECKOUT]")


if __name__ == "__main__":
    quick = {"batch": 4, "runs": 2}
    raise SystemExit(report.main(rows, __doc__, "batch 4, 2 runs", quick, add_options))
