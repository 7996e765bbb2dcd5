"""Time from the start of train.py to the first training step, with an empty and with a filled kernel cache.

python -m benchmarks.startup [--quick] [--json FILE] [--batch 128] [--runs 5]

The benchmark starts a run of one iteration on synthetic batch files and reads its output. It measures the seconds until
train.py prints that the network is compiled, which is when the first step begins, and until it prints the first
iteration. Cold means that the folder of compiled kernels is empty. The library files are in the page cache in both
cases.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from alexnet.data import batch_file
from benchmarks import report

TOP = pathlib.Path(__file__).parent.parent


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
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    began, seen = time.perf_counter(), {}
    command = [python, "-u", str(top / "train.py"), *settings, "validation=false"]
    variables = {"ALEXNET_CACHE": str(cache), "PYTHONPATH": str(top)}
    with subprocess.Popen(
        command, env=environment | variables, cwd=output, text=True, stdout=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            for sign in ("compiled in", "iteration 1"):
                if line.startswith(sign):
                    seen[sign] = time.perf_counter() - began
    if process.returncode or len(seen) < 2:
        raise RuntimeError(f"{command} ended with status {process.returncode}, having said {seen}")
    return seen["compiled in"], seen["iteration 1"]


def rows(batch, runs):
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


def main():
    parser = report.parser(__doc__, quick="batch 4, 2 runs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    results = list(rows(4, 2) if options.quick else rows(options.batch, options.runs))
    print(f"{'':46} {'seconds':>8} {'spread':>8} {'smallest':>8}")
    for row in results:
        print(f"{row['name']:46} {row['value']:8.2f} {row['spread']:8.1%} {row['smallest']:8.2f}")
    report.write(results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
