"""Throughput of preprocess in images per second, on one core and on all cores, and its peak memory.

python -m benchmarks.preprocess [--quick] [--json FILE] [--images DIR] [--count 2500] [--large 5000] [--runs 3]

The benchmark runs the whole command `python -m preprocess imagenet`: decode, resize to 256 x 256, transpose, write,
checksum. The images are synthetic, 500 x 400 pixels and about 110 kB like ImageNet's, or come from --images. They are
links to a few files, all in the page cache. The startup time of the command, measured as its time for ten images, is
reported in a separate row and subtracted from the others.

The peer is a plain Pillow loop over the same files, run in turn. It decodes, converts and resizes them in one process
and writes nothing. Images per second of processor time remain meaningful on a busy machine. Memory is the peak of the
largest process; its peer is the peak for the small set.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from alexnet.data.image_formats import SUFFIXES
from alexnet.native.cores import cores
from benchmarks.harness import report

WIDTH, HEIGHT, QUALITY = 500, 400, 85                        # a synthetic photograph: pixels, JPEG quality
FILES, CLASSES = 64, 10
PLAIN = 500                                                  # images of the Pillow loop


class Cost(NamedTuple):
    """Time and memory of one run."""

    seconds: float
    processor_seconds: float                                 # of all processes
    peak: float                                              # MiB, of the largest process

    def less(self, other):
        """Return this Cost with the times of another subtracted."""
        return Cost(self.seconds - other.seconds, self.processor_seconds - other.processor_seconds, self.peak)


def synthetic_photograph(random):
    """Return an image with the spectrum of photographs: amplitudes fall as 1 / frequency.

    Source: Field 1987.
    """
    rows, columns = np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.rfftfreq(WIDTH), indexing="ij")
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH)
    grey, colours = random.standard_normal((HEIGHT, WIDTH, 1)), random.standard_normal((HEIGHT, WIDTH, 3))
    waves = np.fft.irfft2(np.fft.rfft2(grey + 0.3 * colours, axes=(0, 1)) * falling[..., None], (HEIGHT, WIDTH), (0, 1))
    return Image.fromarray(np.clip(120 + 60 * waves / waves.std(), 0, 255).astype(np.uint8))


def make_images(folder):
    """Write FILES synthetic photographs and return their paths."""
    folder.mkdir()
    paths = [folder / f"{index}.JPEG" for index in range(FILES)]
    for index, path in enumerate(paths):
        synthetic_photograph(np.random.default_rng(index)).save(path, quality=QUALITY)
    return paths


def link_images(paths, folder, images):
    """Create class folders of `images` training links and one validation link per class; return the parent folder."""
    for half, count in (("train", images), ("val", CLASSES)):
        for index in range(count):
            place = folder / half / f"class{index % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            path = paths[index % len(paths)]
            (place / f"{index:06}{path.suffix}").symlink_to(path)
    return folder


def preprocess(folder, workers):
    """Return the Cost of the whole command on a folder of links, and delete the command's output."""
    out = folder / "out"
    command = [sys.executable, "-m", "preprocess", "imagenet", *(os.fspath(folder / half) for half in ("train", "val"))]
    began = time.perf_counter()
    with subprocess.Popen([*command, os.fspath(out), "--workers", str(workers)], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args)} ended with status {process.returncode}")
    shutil.rmtree(out)
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def plain_loop(paths, images):
    """Return the Cost of decoding and resizing `images` images in one process."""
    began, used = time.perf_counter(), time.process_time()
    for index in range(images):
        with Image.open(paths[index % len(paths)]) as image:
            np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
    return Cost(time.perf_counter() - began, time.process_time() - used, 0)


def speed_rows(paths, folder, images, runs):
    """Yield the rows of the startup time and the throughput.

    Throughput is in images per second for each number of processes, and per second of processor time. Further rows
    hold the parallel efficiency.
    """
    links, few = link_images(paths, folder / "links", images + CLASSES), link_images(paths, folder / "few", CLASSES)
    numbers = sorted({1, 2, cores()})
    costs, plain, starts = {workers: [] for workers in numbers}, [], []
    for _ in range(runs):                                    # in turn, so that all run under the same conditions
        plain.append(plain_loop(paths, PLAIN))
        for workers in numbers:
            start = preprocess(few, workers)
            starts.append(start.seconds)
            costs[workers].append(preprocess(links, workers).less(start))
    rate = statistics.median(PLAIN / cost.seconds for cost in plain)
    efficient = statistics.median(PLAIN / cost.processor_seconds for cost in plain)
    yield report.row("start of the command", starts, "s")
    for workers in numbers:
        name = "preprocess, 1 process" if workers == 1 else f"preprocess, {workers} processes"
        yield report.compared(report.row(name, [images / cost.seconds for cost in costs[workers]], "images/s"), rate)
    values = [images / cost.processor_seconds for cost in costs[1]]
    yield report.compared(report.row("preprocess, of processor time", values, "images/s"), efficient)
    for workers in numbers[1:]:
        shared = [100 * one.seconds / workers / many.seconds
                  for one, many in zip(costs[1], costs[workers], strict=True)]
        yield report.row(f"parallel efficiency, {workers} processes", shared, "%")


def memory_rows(paths, folder, sizes):
    """Yield the rows of the peak memory for small and large sets."""
    first = None
    for images in sizes:
        links = link_images(paths, folder / f"links{images}", images)
        row = report.row(f"peak memory, {images:,} images", [preprocess(links, 2).peak], "MiB")
        first = first or row["value"]
        yield report.compared(row, first)


def rows(options):
    images, runs, sizes = options.count, options.runs, sorted({1000, options.large})
    if options.quick:
        images, runs, sizes = 200, 1, (200, 600)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        paths = options.images or make_images(folder / "synthetic")
        plain_loop(paths, min(len(paths), 200))
        yield from speed_rows(paths, folder, images, runs)
        yield from memory_rows(paths, folder, sizes)


def add_options(parser):
    parser.add_argument("--images", type=photographs, metavar="DIR", help="photographs; default: synthetic ones")
    parser.add_argument("--count", type=int, default=2500, help="images of a run (%(default)s)")
    parser.add_argument("--large", type=int, default=5000, help="images of the large set (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="(%(default)s)")


def photographs(folder):
    """Return the absolute paths of the image files in a folder and its subfolders."""
    found = sorted(path.resolve() for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a folder with JPEG or PNG files, got {folder}")
    return found


if __name__ == "__main__":
    quick = "200 images, 1 run; memory for 200 and 600"
    raise SystemExit(report.main(rows, __doc__, quick, add_options=add_options))
