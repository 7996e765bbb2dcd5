"""What reading costs the worker, and what the loader process hides.

python -m benchmarks.loader [--quick] [--json FILE]

Waiting: AlexNet trains on batch files of 256 made images (50 MB, page cache warm), as train.py does; the value is the
part of a step that the worker waits for its images, the peer what it is where the worker reads them itself.

Reading and cropping, each against a copy by NumPy in turn: a file into its shared input buffer, against copying as many
bytes within memory; crop, mirror and mean of a batch, each image at its own corner, against copying an array as large
as its result.  The copies are one thread's.

Slow disk: each reading takes as long as a computation of a fixed number of matrix products.  With the loader the run
should take what the computation takes alone, besides the first reading, which nothing can hide; without it the sum.

Source: Ding et al. 2014, table 1 (there, parallel loading made 20 iterations 1.33 times as fast).
"""

import itertools
import pathlib
import statistics
import tempfile
import time
from typing import NamedTuple

import numpy as np

from alexnet import hkl
from alexnet.augment import crop_stream, draw_crop
from alexnet.compile import Network
from alexnet.data import BatchReader, Request, Segment
from alexnet.dispatch.cpu import build, pool
from alexnet.models import AlexNet
from alexnet.updates import momentum_sgd
from benchmarks import report
from multigpu.device.host import HostDevice
from multigpu.loader import ParallelBatches, SerialBatches

FILES, SIZE = 3, 227
MEAN = np.full((3, 256, 256), 110, np.float32)


class Amount(NamedTuple):
    """How much is measured."""

    images: int                                  # in a file, which is a batch
    steps: int                                   # of training, for each way
    repeats: int                                 # of reading and cropping
    slow_steps: int                              # from a slow disk, for each way
    seconds: float                               # that the slow disk takes for each


class SlowReader(BatchReader):
    """A BatchReader of which each reading takes `seconds`, as from a slow disk."""

    def __init__(self, mean, image_size, seconds):
        super().__init__(mean, image_size)
        self.seconds = seconds

    def read(self, request, out):
        end = time.perf_counter() + self.seconds
        super().read(request, out)
        time.sleep(max(0, end - time.perf_counter()))


def timed(call):
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def make_requests(folder, images):
    """Requests of whole batch files, which are written here."""
    paths = [folder / f"{index:04}.hkl" for index in range(FILES)]
    for path in paths:
        hkl.write(path, np.random.default_rng(0).integers(0, 256, (3, 256, 256, images), dtype=np.uint8))
    return [Request((Segment(path, 0, images),)) for path in paths]


def take_turns(runs, *calls):
    """Lists of seconds, one for each call: every call, then the next round."""
    rounds = [[timed(call) for call in calls] for _ in range(runs + 1)]
    return list(zip(*rounds[1:], strict=True))


# ---- waiting, with the network


def waiting_rows(requests, amount):
    """The part of a training step that the worker waits for images."""
    network = Network(AlexNet(np.random.default_rng(0)), MEAN, momentum_sgd)
    network.compile_all()
    labels = np.zeros(amount.images, np.int32)
    ways = {"on": ParallelBatches, "off": SerialBatches}
    parts = {name: waits(network, way, requests, labels, amount.steps) for name, way in ways.items()}
    peer = statistics.median(parts["off"])
    row = report.row(f"waiting for a batch of {amount.images}", parts["on"], "% of the step", largest=max(parts["on"]))
    yield row | {"peer": peer, "ratio": row["value"] / peer, "peer_is": "without the loader"}


def waits(network, way, requests, labels, steps):
    """The percentage of each step that was spent waiting; the first step's reading nobody could have hidden."""
    parts = []
    with way((MEAN, SIZE), (*MEAN.shape, len(labels)), np.uint8) as batches:
        images = batches.read(itertools.islice(itertools.cycle(requests), steps + 1))
        before, began = 0.0, time.perf_counter()
        for step, pixels in enumerate(images):
            waited = batches.waited
            crop = draw_crop(crop_stream(0, 0, step), len(labels), SIZE)
            network.train(pixels, *crop, labels, np.float32(1e-3))
            ended = time.perf_counter()
            parts.append(100 * (waited - before) / (ended - began))
            before, began = waited, ended
    return parts[1:]


# ---- reading and cropping


def copy_rows(requests, amount):
    """A file into its buffer, and a crop, each against a copy."""
    shape = (*MEAN.shape, amount.images)
    with HostDevice() as device:
        buffer = device.allocate(int(np.prod(shape))).array(shape, np.uint8)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        requests = itertools.cycle(requests)
        reader = BatchReader(MEAN, SIZE)
        seconds = take_turns(
            amount.repeats, lambda: reader.read(next(requests), buffer), lambda: np.copyto(buffer, pixels)
        )
        read, copied = ([pixels.nbytes / 1e9 / value for value in values] for values in seconds)
    peer = statistics.median(copied)
    row = report.row(f"read_batch, {amount.images} images", read, "GB/s")
    yield row | {"peer": peer, "ratio": row["value"] / peer, "peer_is": "copying them"}
    yield crop_row(pixels, amount)


def crop_row(pixels, amount):
    """Crop, mirror and mean of a batch by the kernel, in milliseconds."""
    kernel = build.function("crop", "crop_mirror", "aaaaaannnnn", can_fail=True)
    crop = draw_crop(crop_stream(0, 0, 0), amount.images, SIZE)
    out, source = (pool.empty((3, SIZE, SIZE, amount.images), np.float32) for _ in range(2))
    source.fill(0)
    seconds = take_turns(
        amount.repeats,
        lambda: kernel(pixels, MEAN, *crop, out, *pixels.shape, SIZE),
        lambda: np.copyto(out, source),
    )
    cropped, copied = ([1e3 * value for value in values] for values in seconds)
    peer = statistics.median(copied)
    row = report.row(f"crop, mirror and mean of {amount.images}, {build.threads()} threads", cropped, "ms")
    return row | {"peer": peer, "ratio": row["value"] / peer, "peer_is": "copying the result"}


# ---- a slow disk


class Computation:
    """A step of the worker: matrix products that take about `seconds` while nothing else runs."""

    def __init__(self, seconds):
        self.matrix = np.full((1024, 1024), 1 / 1024, np.float32)
        self.products = 1
        self.products = max(1, round(seconds / statistics.median(timed(self) for _ in range(15))))

    def __call__(self):
        for _ in range(self.products):
            self.matrix = self.matrix @ self.matrix


def slow_disk_rows(requests, amount):
    """A run with and without the loader; the peers are what they should take: the larger, and the sum."""
    compute, steps = Computation(amount.seconds), amount.slow_steps
    requests = list(itertools.islice(itertools.cycle(requests), steps))
    step = statistics.median(timed(compute) for _ in range(9))
    arguments = (MEAN, SIZE, step), (*MEAN.shape, amount.images), np.uint8

    def run(batches, call):
        for _ in batches.read(requests):
            call()

    with (
        SerialBatches(*arguments, make_reader=SlowReader) as serial,
        ParallelBatches(*arguments, make_reader=SlowReader) as parallel,
    ):
        computing, reading, off, on = take_turns(
            3,
            lambda: [compute() for _ in requests],
            lambda: run(serial, lambda: None),
            lambda: run(serial, compute),
            lambda: run(parallel, compute),
        )
    alone = statistics.median(computing), statistics.median(reading)
    for name, seconds, peer, peer_is in (
        ("loader off", off, sum(alone), "computing and reading"),
        ("loader on", on, max(alone), "the larger of the two"),
    ):
        row = report.row(f"{steps} batches from a slow disk, {name}", seconds, "s")
        yield row | {"peer": peer, "ratio": row["value"] / peer, "peer_is": peer_is}


def rows(amount):
    with tempfile.TemporaryDirectory() as folder:
        requests = make_requests(pathlib.Path(folder), amount.images)
        yield from copy_rows(requests, amount)
        yield from slow_disk_rows(requests, amount)
        yield from waiting_rows(requests, amount)


def main():
    parser = report.parser(__doc__, quick="batches of 64, 4 steps")
    options = parser.parse_args()
    amount = Amount(64, 4, 15, 8, 0.1) if options.quick else Amount(256, 5, 31, 10, 0.2)
    print(f"{'':48} {'':>8} {'':13} {'spread':>8} {'peer':>8} {'ratio':>7}")
    found = []
    for row in rows(amount):
        found.append(row)
        print(f"{row['name']:48} {row['value']:8.3f} {row['unit']:13} {row['spread']:8.1%} "
              f"{row['peer']:8.3f} {row['ratio']:7.3f}  {row['peer_is']}", flush=True)  # fmt: skip
    report.write(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
