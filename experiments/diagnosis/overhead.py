"""The time that the statistics of a training take, in alternating windows of one process.

python -m experiments.diagnosis.overhead [--model alexnet] [--batch 16] [--pairs 100] [--steps 5] [--threads 2]

The process trains on one batch in memory. Windows with the statistics, as often as in a training with print_freq=20,
alternate with windows of as many steps without. A pair begins with the kind with which the pair before has ended. The
clock of the statistics stops in the windows without them, so that their share of the time is that of a training.

The output is the ratio of the total times, with statistics divided by without, its standard error from a bootstrap over
the pairs, the same for processor time, and the number of measurements.
"""

import argparse
import io
import pathlib
import tempfile
import time

import numpy as np

from alexnet.config import load_config
from alexnet.data.augment import centre_crop
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
    return images, *centre_crop(size, model.image_size), rng.integers(0, 10, size).astype(np.int32)


def window(step, steps):
    """Call a step some times; return the seconds and the seconds of the processors."""
    begin = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def measured(options, folder):
    """Return the times with and without statistics, (pairs, kind of time, 2), and the number of measurements."""
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
            times = {}
            for step in (observed, plain) if pair % 2 else (plain, observed):
                if step is observed:
                    clock.resume()
                times[step] = window(step, options.steps)
                if step is observed:
                    clock.pause()
            found.append((times[observed], times[plain]))
    return np.transpose(found, (0, 2, 1)), sum(record["kind"] == STATISTICS for record in read_records(folder)) - 1


def ratio(times, rng):
    """Return the ratio of the totals of pairs, and its standard error.

    Args:
        times: (pairs, 2).
    """
    samples = times[rng.integers(0, len(times), (2000, len(times)))].sum(axis=1)
    totals = times.sum(axis=0)
    return totals[0] / totals[1], (samples[:, 0] / samples[:, 1]).std()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5, help="of a window")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times, measurements = measured(options, pathlib.Path(folder))
    rng = np.random.default_rng(0)
    wall, processor = (ratio(times[:, kind], rng) for kind in (0, 1))
    print(f"{options.model}, batch {options.batch}: time {wall[0]:.4f} ± {wall[1]:.4f}, processor time "
          f"{processor[0]:.4f} ± {processor[1]:.4f}, {options.pairs} pairs of {options.steps} steps, {measurements} "
          f"measurements")


if __name__ == "__main__":
    main()
