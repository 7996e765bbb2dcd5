"""The time that the statistics of a training take, in alternating windows of one process.

python -m experiments.diagnosis.overhead [--model alexnet] [--batch 16] [--pairs 20] [--seconds 10] [--threads 2]

The process trains on one batch in memory. Windows with the statistics, as often as in a training with print_freq=20,
alternate with windows without. The first is always that of the other kind than the last one of the pair before. The
clock of the statistics stops in the windows without them, so that their share of the time is that of a training.

The output is the median and the quartiles of the ratio of the seconds per step, with statistics divided by without, and
the number of measurements.
"""

import argparse
import io
import pathlib
import tempfile
import time

import numpy as np

from alexnet.config import load_config
from alexnet.native import compiler
from alexnet.run.recorder import RunRecorder, read_records
from alexnet.training.diagnosis import STATISTICS
from alexnet.training.network import build_model, build_network
from alexnet.training.statistics import FIRST, StatisticsObserver

EVERY = 20                                       # print_freq


class PausableClock:
    """perf_counter() without the time of pauses."""

    def __init__(self):
        self.paused = 0.0
        self.since = None                        # beginning of the pause

    def __call__(self):
        return (time.perf_counter() if self.since is None else self.since) - self.paused

    def pause(self):
        self.since = time.perf_counter()

    def resume(self):
        if self.since is not None:
            self.paused += time.perf_counter() - self.since
            self.since = None


def batch_of(model, size, rng):
    """Return the inputs of a step: images, crops and labels of random content."""
    images = rng.integers(0, 256, (3, 256, 256, size), np.uint8)
    offsets = [rng.integers(0, 256 - model.image_size + 1, size).astype(np.int32) for _ in range(2)]
    mirrors = rng.integers(0, 2, size).astype(np.uint8)
    return images, *offsets, mirrors, rng.integers(0, 10, size).astype(np.int32)


def window(step, seconds):
    """Call a step for some seconds; return the seconds per step."""
    begin = time.perf_counter()
    steps = 0
    while (passed := time.perf_counter() - begin) < seconds:
        step()
        steps += 1
    return passed / steps


def ratios(options, folder):
    """Return the ratio of each pair, and the number of measurements."""
    compiler.use_threads(options.threads)
    config = load_config(["data=none", f"model={options.model}", f"batch_size={options.batch}", "learning_rate=1e-6"])
    rng = np.random.default_rng(0)
    model = build_model(config, 10)
    model.wait()
    network = build_network(config, model, np.full((3, 256, 256), 110, np.float32))
    network.compile_all()
    inputs = batch_of(model, options.batch, rng)
    clock = PausableClock()
    with RunRecorder(folder, EVERY, stream=io.StringIO(), clock=clock) as recorder:
        observer = StatisticsObserver(network, recorder, EVERY)
        iteration = FIRST - 1

        def plain():
            network.train(*inputs, np.float32(1e-6))

        def observed():
            nonlocal iteration
            iteration += 1
            observer.step_begins(iteration, inputs)
            network.train(*inputs, np.float32(1e-6))
            observer.step_ended(iteration)

        for _ in range(EVERY + 1):               # compiles, and takes the first measurement
            observed()
        found = []
        for pair in range(options.pairs):
            seconds = {}
            for step in (observed, plain) if pair % 2 else (plain, observed):
                if step is observed:
                    clock.resume()
                seconds[step] = window(step, options.seconds)
                if step is observed:
                    clock.pause()
            found.append(seconds[observed] / seconds[plain])
    return found, sum(record["kind"] == STATISTICS for record in read_records(folder)) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10, help="of a window")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, measurements = ratios(options, pathlib.Path(folder))
    low, median, high = np.quantile(found, (0.25, 0.5, 0.75))
    print(f"{options.model}, batch {options.batch}: ratio {median:.4f} (quartiles {low:.4f}, {high:.4f}), mean "
          f"{np.mean(found):.4f}, {len(found)} pairs, {measurements} measurements")


if __name__ == "__main__":
    main()
