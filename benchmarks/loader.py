"""Time that a worker spends on reading images, and how much of it the loader process hides.

python -m benchmarks.loader [--quick] [--json FILE]

Waiting: AlexNet trains on batch files of 256 synthetic images (50 MB, warm page cache), like train.py. The value is the
percentage of a step in which the worker waits for images. The peer is the same percentage without the loader process.

Reading and cropping, each alternating with a single-threaded NumPy copy as peer: reading a file into the shared input
buffer, compared with copying the same number of bytes within memory; and crop, mirroring and mean subtraction of a
batch, with a different crop position for each image, compared with copying an array of the size of the result. Reading
with verification of the checksum, as in training, is compared with reading without it (verify_data=false).

Slow disk: reading a batch takes as long as the computation, a fixed number of matrix products. With the loader, a run
should take as long as the computation plus the first read, which cannot be hidden. Without the loader it should take
the sum of both.

Source: Ding et al. 2014, table 1 (there, parallel loading made 20 iterations 1.33 times as fast).
"""

import itertools
import pathlib
import statistics
import tempfile
import time
from typing import NamedTuple

import numpy as np

from alexnet.data import batch_file
from alexnet.data.augment import crop_stream, draw_crop
from alexnet.data.batch_file import FileChecksum, sums_crc32
from alexnet.data.dataset import BatchReader, Request, Segment
from alexnet.models.alexnet import AlexNet
from alexnet.native import allocator, compiler
from alexnet.ops.kernels import crop
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from benchmarks.harness import report
from multigpu.device.host import HostDevice
from multigpu.loader import ParallelBatches, SerialBatches

FILES, SIZE = 3, 227
MEAN = np.full((3, 256, 256), 110, np.float32)


class Amount(NamedTuple):
    """Amount of measurement."""

    images: int                                  # images in a file, which is one batch
    steps: int                                   # training steps, with and without the loader
    repeats: int                                 # repetitions of reading and cropping
    slow_steps: int                              # batches from the slow disk, with and without the loader
    seconds: float                               # seconds per batch of the slow disk


class SlowReader(BatchReader):
    """A BatchReader that takes at least `seconds` per read, like a slow disk."""

    def __init__(self, mean, image_size, seconds):
        super().__init__(mean, image_size)
        self.seconds = seconds

    def read(self, request, out):
        end = time.perf_counter() + self.seconds
        super().read(request, out)
        time.sleep(max(0, end - time.perf_counter()))


def make_requests(folder, images):
    """Write the batch files and return a Request for each whole file, with its checksum."""
    paths = [folder / f"{index:04}.hkl" for index in range(FILES)]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 256, 256, images), dtype=np.uint8)
    for path in paths:
        batch_file.write(path, pixels)
    checksum = FileChecksum("", sums_crc32(pixels))
    return [Request((Segment(path, 0, images, checksum),)) for path in paths]


def unverified(request):
    """Return the Request without checksums, as with verify_data=false."""
    return Request(tuple(segment._replace(checksum=None) for segment in request.segments))


def take_turns(runs, *calls):
    """Run all calls in alternation. Return a tuple of seconds for each call, without the warm-up round."""
    rounds = [[report.seconds(call) for call in calls] for _ in range(runs + 1)]
    return list(zip(*rounds[1:], strict=True))


# ---- waiting during training


def waiting_rows(requests, amount):
    """Yield the row of the percentage of a training step in which the worker waits for images."""
    network = Network(AlexNet(np.random.default_rng(0)), MEAN, momentum_sgd)
    network.compile_all()
    labels = np.zeros(amount.images, np.int32)
    ways = {"on": ParallelBatches, "off": SerialBatches}
    parts = {name: waits(network, way, requests, labels, amount.steps) for name, way in ways.items()}
    row = report.row(f"waiting for a batch of {amount.images}", parts["on"], "% of the step", largest=max(parts["on"]))
    yield report.compared(row, parts["off"], "without the loader")


def waits(network, way, requests, labels, steps):
    """Return the percentage of waiting in each step except the first, whose read cannot be hidden."""
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
    """Yield the rows of reading a file into the buffer and of cropping, each with a copy as peer.

    Reading with verification has reading without it as peer.
    """
    shape = (*MEAN.shape, amount.images)
    with HostDevice() as device:
        buffer = device.allocate(int(np.prod(shape))).array(shape, np.uint8)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        requests = itertools.cycle(requests)
        reader = BatchReader(MEAN, SIZE)
        seconds = take_turns(
            amount.repeats,
            lambda: reader.read(unverified(next(requests)), buffer),
            lambda: np.copyto(buffer, pixels),
            lambda: reader.read(next(requests), buffer),
        )
        read, copied, verified = ([pixels.nbytes / 1e9 / value for value in values] for values in seconds)
    row = report.row(f"read_batch, {amount.images} images", read, "GB/s")
    yield report.compared(row, copied, "copying them")
    row = report.row(f"read_batch, {amount.images} images, verified", verified, "GB/s")
    yield report.compared(row, read, "without the checksum")
    yield crop_row(pixels, amount)


def crop_row(pixels, amount):
    """Return the row of the kernel that crops, mirrors and subtracts the mean of a batch, in milliseconds."""
    kernel = compiler.function(crop.SOURCE, "crop_mirror", "aaaaaannnnn", can_fail=True)
    window = draw_crop(crop_stream(0, 0, 0), amount.images, SIZE)
    out, source = (allocator.empty((3, SIZE, SIZE, amount.images), np.float32) for _ in range(2))
    source.fill(0)
    seconds = take_turns(
        amount.repeats,
        lambda: kernel(pixels, MEAN, *window, out, *pixels.shape, SIZE),
        lambda: np.copyto(out, source),
    )
    cropped, copied = ([1e3 * value for value in values] for values in seconds)
    row = report.row(f"crop, mirror and mean of {amount.images}, {compiler.threads()} threads", cropped, "ms")
    return report.compared(row, copied, "copying the result")


# ---- a slow disk


class Computation:
    """A simulated step: matrix products that take about `seconds` on an otherwise idle machine."""

    def __init__(self, seconds):
        self.matrix = np.full((1024, 1024), 1 / 1024, np.float32)
        self.products = 1
        self.products = max(1, round(seconds / statistics.median(report.seconds(self) for _ in range(15))))

    def __call__(self):
        for _ in range(self.products):
            self.matrix = self.matrix @ self.matrix


def slow_disk_rows(requests, amount):
    """Yield the rows of a run without and with the loader.

    The peers are the ideal times: the sum of computing and reading without the loader, and their maximum with it.
    """
    compute, steps = Computation(amount.seconds), amount.slow_steps
    requests = list(itertools.islice(itertools.cycle(requests), steps))
    step = statistics.median(report.seconds(compute) for _ in range(9))
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
        yield report.compared(row, peer, peer_is)


def rows(options):
    amount = Amount(64, 4, 15, 8, 0.1) if options.quick else Amount(256, 5, 31, 10, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        requests = make_requests(pathlib.Path(folder), amount.images)
        yield from copy_rows(requests, amount)
        yield from slow_disk_rows(requests, amount)
        yield from waiting_rows(requests, amount)


if __name__ == "__main__":
    raise SystemExit(report.main(rows, __doc__, "batches of 64, 4 steps"))
