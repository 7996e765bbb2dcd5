"""How many images a second preprocess turns into batch files, by number of processes.

python -m benchmarks.preprocess [--quick] [--json FILE] [--images 1000] [--runs 5]

The whole command on made JPEGs of 500 x 400 pixels, a usual size in ImageNet, in a temporary folder: decode, resize,
write, checksum.  The peer is a plain loop of Pillow over the same files, decoding and resizing alone, in one process.
"""

import contextlib
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks import report
from preprocess.batches import Settings, make_batches
from preprocess.figures import FIGURES, draw
from preprocess.sources import find_images
from preprocess.workers import default_workers

WIDTH, HEIGHT = 500, 400                         # pixels


def make_images(folder, images):
    """Class folders of made JPEGs, some for training and a tenth as many for validation."""
    random = np.random.default_rng(0)
    drawn = [Image.fromarray(draw(label, WIDTH, HEIGHT, random)) for label in range(len(FIGURES))]
    for half, count in (("train", images), ("val", images // 10)):
        for i in range(count):
            place = folder / half / f"class{i % len(FIGURES)}"
            place.mkdir(parents=True, exist_ok=True)
            drawn[i % len(FIGURES)].save(place / f"{i}.JPEG", quality=90)


def timed(call):
    """Seconds that a call takes, its printing left out."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        began = time.perf_counter()
        call()
        return time.perf_counter() - began


def plain_loop(folder):
    """Decode and resize every image, one after the other."""
    for path in sorted(folder.glob("*/*/*.JPEG")):
        with Image.open(path) as image:
            np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))


def measure(images, runs):
    """name -> list of seconds, for each number of processes and for the plain loop."""
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_images(folder, images)
        sources = find_images(folder / "train", folder / "val", 1)
        for run in range(runs):
            for workers in sorted({1, default_workers()}):
                out = folder / f"out{run}_{workers}"
                out.mkdir()
                seconds = timed(lambda out=out, workers=workers: make_batches(sources, out, Settings(), workers))
                times.setdefault(f"{workers} processes" if workers > 1 else "1 process", []).append(seconds)
            times.setdefault("plain loop of Pillow", []).append(timed(lambda: plain_loop(folder)))
    return times


def main():
    parser = report.parser(__doc__, quick="200 images, 2 runs")
    parser.add_argument("--images", type=int, default=1000, help="training images; a tenth more for validation")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    images, runs = (200, 2) if options.quick else (options.images, options.runs)
    times = measure(images, runs)
    total = images + images // 10
    peer = total / statistics.median(times["plain loop of Pillow"])
    results = []
    print(f"{'':24} {'images/s':>8} {'spread':>7} {'ratio':>6}")
    for name, values in times.items():
        median = statistics.median(values)
        row = {"name": f"preprocess, {name}", "value": total / median, "unit": "images/s",
               "spread": (max(values) - min(values)) / median, "peer": peer, "ratio": total / median / peer}
        results.append(row)
        print(f"{name:24} {row['value']:8.0f} {row['spread']:7.1%} {row['ratio']:6.2f}")
    report.write(results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
