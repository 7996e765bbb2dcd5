"""Run all benchmarks in sequence and write RESULTS.md.

python -m benchmarks [--quick] [--json FILE] [--only step kernels ...] [--output FILE]

Each benchmark runs in a separate process with a time limit; the limits add up to 45 minutes. Time that a benchmark
does not use is available to the next one. A failed benchmark is reported in its section, the others still run, and the
exit status is 1. With --quick or --only, the results are printed unless --output names a file, so RESULTS.md always
comes from a complete run.
"""

import datetime
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks.harness import machine, report
from benchmarks.harness.program import environment, last_line
from benchmarks.harness.results import Headline, Section, clock, markdown

HERE = pathlib.Path(__file__).parent
TRAININGS = HERE / "harness" / "trainings.md"            # results of long training runs, written by hand


class Benchmark(NamedTuple):
    """A module of this package, the title of its section, and its time limit in minutes."""

    module: str
    title: str
    minutes: float


BENCHMARKS = (
    Benchmark("step", "The step", 10.5),
    Benchmark("kernels", "The step, layer by layer", 3),
    Benchmark("table1", "Table 1 of the paper", 5.5),
    Benchmark("accuracy.agreement", "Agreement with PyTorch in float64", 1),
    Benchmark("startup", "From the start to the first step", 2),
    Benchmark("loader", "The loader", 2),
    Benchmark("preprocess", "Preprocessing", 2),
    Benchmark("exchange", "The exchange", 1.5),
    Benchmark("evaluate", "Evaluation and prediction", 2.5),
    Benchmark("mpi.strategies", "Strategies over MPI", 3),
    Benchmark("mpi.server", "The parameter server", 2),
    Benchmark("mpi.scaling", "Training over MPI", 10),
)
HEADLINES = (
    Headline("step", r"^train step, batch \d+, ours(, held to AVX2)?$"),
    Headline("step", r"^validate step, batch \d+, ours$"),
    Headline("step", r"ours: "),
    Headline("kernels", r"^all convolutions$", "PyTorch, one pass at a time"),
    Headline("table1", r"^20 iterations", "PyTorch and its DataLoader"),
    Headline("startup", r"to the first step"),
    Headline("loader", r"."),
    Headline("preprocess", r"."),
    Headline("exchange", r"weights and momentum, ShardedAverage$"),
    Headline("mpi.strategies", r"^2 ranks, 243.9 MB, (peer|asa32|asa16)$", "a hand-written exchange"),
    Headline("mpi.scaling", r"^alexnet, batch \d+, (1 rank|2 ranks, (asa32|peer))$"),
    Headline("evaluate", r"^(evaluate, batch \d+, ours|predict one image)"),
)


def run(benchmark, quick, limit):
    """Run one benchmark in its own process group for at most `limit` seconds and return its Section."""
    arguments = ("--quick",) if quick else ()
    with tempfile.TemporaryDirectory() as folder:
        rows, errors = pathlib.Path(folder, "rows"), pathlib.Path(folder, "errors")
        command = [sys.executable, "-m", f"benchmarks.{benchmark.module}", *arguments, "--json", os.fspath(rows)]
        began = time.perf_counter()
        with errors.open("w", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                command, env=environment(), cwd=HERE.parent, stderr=stderr, start_new_session=True
            )
            failure = wait(process, limit)
        seconds = time.perf_counter() - began
        if failure:
            failure = f"{failure}: {last_line(errors.read_text('utf-8')) or 'no error output'}"
        return Section(benchmark.module, benchmark.title, arguments, report.read(rows), seconds, failure)


def wait(process, limit):
    """Wait for the process and return None, or a description of its failure.

    The process group is killed after `limit` seconds, or if this process is interrupted.
    """
    try:
        status = process.wait(limit)
        return f"exit status {status}" if status else None
    except subprocess.TimeoutExpired:
        return f"killed at its time limit of {clock(limit)}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_all(benchmarks, quick):
    """Run the benchmarks and return their Sections in the given order. Print a line before and after each.

    The benchmarks with the shortest limits run first, so that the longest can use the time that the others leave.
    """
    sections, began, allowed = {}, time.perf_counter(), 0
    for number, benchmark in enumerate(sorted(benchmarks, key=lambda each: each.minutes), 1):
        allowed += 60 * benchmark.minutes
        passed = time.perf_counter() - began
        print(f"\n[{number}/{len(benchmarks)}, {clock(passed)} so far] {benchmark.module}", flush=True)
        section = sections[benchmark] = run(benchmark, quick, allowed - passed)
        outcome = f"FAILED: {section.failure}" if section.failure else "done"
        print(f"{benchmark.module} {outcome} after {clock(section.seconds)}", flush=True)
    return [sections[benchmark] for benchmark in benchmarks]


def results(sections, arguments):
    """Return the text of RESULTS.md."""
    now = datetime.datetime.now(datetime.UTC)
    return markdown(
        sections,
        HEADLINES,
        machine.facts(),
        command=" ".join(("python -m benchmarks", *arguments)),
        date=f"{now:%Y-%m-%d %H:%M} UTC",
        by_hand=TRAININGS.read_text(encoding="utf-8") if TRAININGS.exists() else "",
    )


def options_of(arguments):
    names = [benchmark.module for benchmark in BENCHMARKS]

    def add_options(parser):
        parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
        parser.add_argument("--output", type=pathlib.Path, metavar="FILE")

    options = report.parse(__doc__, "per benchmark, with settings too small for meaningful figures", {}, add_options,
                           arguments)
    if options.output is None and not options.quick and options.only == names:
        options.output = HERE / "RESULTS.md"
    return options


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options = options_of(arguments)
    chosen = [benchmark for benchmark in BENCHMARKS if benchmark.module in options.only]
    sections = run_all(chosen, options.quick)
    text = results(sections, arguments)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
        print(f"\nwritten to {options.output}")
    else:
        print(f"\n{text}")
    report.write([{"benchmark": section.module, **row} for section in sections for row in section.rows], options.json)
    return int(any(section.failure for section in sections))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))          # so that the running benchmark is killed, too
    raise SystemExit(main())
