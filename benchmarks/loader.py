"""What the loader process is worth where reading is as slow as computing.

python -m benchmarks.loader [--quick] [--json FILE]

Batch files of 256 images (50 MB) are read by the BatchReader of training, which then waits, as if the disk were
slow, until as much time has passed as the computation takes; the computation is a fixed number of matrix
products.  Both are measured alone, then together: without the loader they should take their sum, with it no
more than the larger of the two, plus the first reading, which nothing can hide, and what handing over costs.

Source: Ding et al. 2014, table 1 (there, parallel loading made 20 iterations 1.33 times as fast).
"""

import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

from alexnet import hkl
from alexnet.data import BatchReader, Request, Segment
from benchmarks import report
from multigpu.loader import ParallelBatches, SerialBatches

FILES, IMAGES = 4, 256


class SlowReader(BatchReader):
    """A BatchReader of which each reading takes `seconds`, as from a slow disk."""

    def __init__(self, mean, image_size, seconds):
        super().__init__(mean, image_size)
        self.seconds = seconds

    def read(self, request, out):
        end = time.perf_counter() + self.seconds
        super().read(request, out)
        time.sleep(max(0, end - time.perf_counter()))


class Computation:
    """A step of the worker: matrix products that take about `seconds` while nothing else runs."""

    def __init__(self, seconds):
        self.matrix = np.full((1024, 1024), 1 / 1024, np.float32)
        self.products = 1
        self.products = max(1, round(seconds / statistics.median(timed(self) for _ in range(15))))

    def __call__(self):
        for _ in range(self.products):
            self.matrix = self.matrix @ self.matrix


def timed(call):
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run(batches, requests, compute):
    """Read every request and compute after each."""
    for _ in batches.read(requests):
        compute()


def measure(folder, steps, seconds, repeats):
    """Seconds of `steps` steps for each way, over the repeats: name -> list."""
    files = [folder / f"{index:04}.hkl" for index in range(FILES)]
    for path in files:
        hkl.write(path, np.random.default_rng(0).integers(0, 256, (3, 256, 256, IMAGES), dtype=np.uint8))
    requests = [Request((Segment(files[step % FILES], 0, IMAGES),)) for step in range(steps)]
    compute = Computation(seconds)
    step = statistics.median(timed(compute) for _ in range(9))
    arguments = (np.zeros((3, 256, 256), np.float32), 227, step), (3, 256, 256, IMAGES), np.uint8
    times = {"computing alone": [], "reading alone": [], "loader off": [], "loader on": []}
    with (
        SerialBatches(*arguments, make_reader=SlowReader) as serial,
        ParallelBatches(*arguments, make_reader=SlowReader) as parallel,
    ):
        for batches in (serial, parallel):
            run(batches, requests[:FILES], compute)                 # starts, and every page is touched once
        for _ in range(repeats):                                    # in turn, so that all see the same machine
            times["computing alone"].append(timed(lambda: [compute() for _ in requests]))
            times["reading alone"].append(timed(lambda: run(serial, requests, lambda: None)))
            times["loader off"].append(timed(lambda: run(serial, requests, compute)))
            times["loader on"].append(timed(lambda: run(parallel, requests, compute)))
    return times


def rows(times, steps):
    """One dict for each figure: median seconds of a run, spread over the runs, and what it is held against."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    alone = medians["computing alone"], medians["reading alone"]
    peers = {"loader off": sum(alone), "loader on": max(alone)}
    for name, values in times.items():
        row = {"name": f"{name}, {steps} batches of {IMAGES}", "value": medians[name], "unit": "s",
               "spread": (max(values) - min(values)) / medians[name]}
        if name in peers:
            row |= {"peer": peers[name], "ratio": medians[name] / peers[name]}
        yield row


def main():
    parser = report.parser(__doc__, quick="16 batches of 0.1 s instead of 30 of 0.2 s")
    options = parser.parse_args()
    steps, seconds = (16, 0.1) if options.quick else (30, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(pathlib.Path(folder), steps, seconds, repeats=5)
    results = list(rows(times, steps))
    print(f"{'':40} {'seconds':>8} {'spread':>8} {'ratio':>6}")
    for row in results:
        ratio = f"{row['ratio']:6.3f}" if "ratio" in row else ""
        print(f"{row['name']:40} {row['value']:8.3f} {row['spread']:8.1%} {ratio}")
    print("ratio: loader off to the sum of reading and computing, loader on to the larger of the two")
    report.write(results, options.json)
    good = results[-1]["ratio"] <= 1.15
    print(f"the loader's work is {'hidden' if good else 'NOT hidden'}: at most 1.15 is asked for")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
