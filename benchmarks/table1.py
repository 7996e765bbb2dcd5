"""Table 1 of the paper on this machine: seconds per 20 iterations of 256 images, with and without parallel loading.

python -m benchmarks.table1 [--quick] [--json FILE] [--batch 256] [--iterations 3]

The benchmark reads real files of synthetic images. This project runs train.py, started again for each turn: one worker,
with and without the loader process, and two workers of 128 images each. The two workers share the same cores and
exchange weights and momentum after each iteration. There is no second device, so their additional time is the cost of
the exchange.

The peer is the same network in PyTorch (channels_last). Its DataLoader decodes, resizes, crops and mirrors the JPEGs
that the batch files were made from, with one loader process and with none. This project runs first, then PyTorch, then
this project again. The first iteration of a turn is not counted. A figure is 20 times the median of the timed
iterations; `runs` and `peer runs` are their numbers. The paper timed 20.

The paper reports 32.76 s with parallel loading and 43.52 s without on one Titan Black, and 19.72 s and 26.23 s on two
(cuDNN R2).

Source: Ding et al. 2014, table 1.
"""

import argparse
import contextlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from alexnet.run.recorder import read_records
from benchmarks import report
from benchmarks.program import Program, environment, last_line, serve

OURS, TWO, PYTORCH = "one worker", "two workers", "PyTorch"
KINDS = {"parallel": "yes", "serial": "no"}
TURNS = (OURS, TWO, PYTORCH, OURS)
SIZE = 227
TRAIN_PY = pathlib.Path(__file__).parents[1] / "train.py"


# ---- measured programs


class TrainPy:
    """train.py on the data of a folder, started again for each turn. The devices divide the batch equally."""

    def __init__(self, folder, batch, devices, *settings):
        self.folder, self.batch, self.devices, self.settings = folder, batch, devices, settings

    def turn(self, kind, iterations):
        """Run train.py and return the seconds of each of `iterations` iterations, after a first that is not counted."""
        given = {
            "data": self.folder, "output": self.folder / "runs", "run_name": "run", "devices": ",".join(self.devices),
            "batch_size": self.batch // len(self.devices), "n_iterations": iterations + 1, "n_epochs": 1000,
            "para_load": kind == "parallel", "validation": False, "snapshot_freq": 1000,
        }
        command = [sys.executable, TRAIN_PY, *(f"{key}={value}" for key, value in given.items()), *self.settings]
        done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
        try:
            if done.returncode:
                raise RuntimeError(f"train.py ended with status {done.returncode}: {last_line(done.stderr)}")
            records = read_records(self.folder / "runs" / "run")
        finally:
            shutil.rmtree(self.folder / "runs", ignore_errors=True)
        return [record["seconds"] for record in records if record["kind"] == "train"][1:]


class Peer:
    """PyTorch in a process that keeps running between turns."""

    def __init__(self, program):
        self.program = program

    def turn(self, kind, iterations):
        """Return the same as TrainPy.turn().

        With parallel loading, the uncounted first iteration uses data that was loaded during other programs' turns.
        """
        return [self.program.step(kind)[0] for _ in range(iterations + 1)][1:]


class Photographs:
    """The training JPEGs as a PyTorch data set: float32 (3, 227, 227), randomly cropped and mirrored, and the label."""

    def __init__(self, folder):
        classes = sorted(path for path in (folder / "images" / "train").iterdir() if path.is_dir())
        self.files = [(path, label) for label, place in enumerate(classes) for path in sorted(place.iterdir())]
        self.mean = np.load(folder / "misc" / "img_mean.npy").astype("float32")
        self.random = np.random.default_rng(0)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        path, label = self.files[index]
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR), np.float32)
        row, column = self.random.integers(0, 256 - SIZE + 1, 2)
        pixels = (pixels.transpose(2, 0, 1) - self.mean)[:, row : row + SIZE, column : column + SIZE]
        return np.ascontiguousarray(pixels[:, :, :: self.random.choice([-1, 1])]), label


def torch_iterations(data, batch):
    """Return {kind of loading: generator that runs one PyTorch iteration per item}."""
    import torch

    from benchmarks.torch_alexnet import momentum_sgd, torch_alexnet

    photographs = Photographs(pathlib.Path(data))
    network = torch_alexnet(classes=10).to(memory_format=torch.channels_last)
    optimizer = momentum_sgd(network)

    def iterations(processes):
        endless = torch.utils.data.RandomSampler(photographs, replacement=True, num_samples=10**8)     # without epochs
        batches = torch.utils.data.DataLoader(photographs, batch, sampler=endless, num_workers=processes)
        for images, labels in batches:
            optimizer.zero_grad()
            images = images.contiguous(memory_format=torch.channels_last)
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            yield

    return {"parallel": iterations(1), "serial": iterations(0)}


# ---- measurement


def measure(contestants, iterations):
    """Return {kind: {name: list of seconds}}; each turn runs `iterations` iterations of each kind."""
    seconds = {kind: {name: [] for name in contestants} for kind in KINDS}
    for name in (name for name in TURNS if name in contestants):
        for kind in KINDS:
            seconds[kind][name] += contestants[name].turn(kind, iterations)
    return seconds


def rows(seconds, batch):
    """Yield a row per kind of loading and number of workers, and the gains of parallel loading and a second worker."""
    for name in (OURS, TWO):
        for kind, loading in KINDS.items():
            of_20 = {name: [20 * value for value in times] for name, times in seconds[kind].items()}
            made = report.row(f"20 iterations of {batch}, {name}, parallel loading: {loading}", of_20[name], "s")
            if PYTORCH in of_20:
                peer = report.row("", of_20[PYTORCH], "s")
                made |= {"peer": peer["value"], "ratio": peer["value"] / made["value"],
                         "peer_spread": peer["spread"], "peer_runs": peer["runs"]}
            yield made
    median = {(kind, name): float(np.median(times)) for kind in KINDS for name, times in seconds[kind].items()}
    gains = {name: median["serial", name] / median["parallel", name] for name in seconds["parallel"]}
    peer = {"peer": gains[PYTORCH]} if PYTORCH in gains else {}
    yield {"name": "gained by parallel loading", "value": gains[OURS], "unit": "times as fast", **peer}
    second = median["parallel", OURS] / median["parallel", TWO]
    yield {"name": "gained by the second worker", "value": second, "unit": "times as fast"}


def make_data(folder, batch, files=2):
    """Write the synthetic data set of preprocess with `files` training batch files."""
    from preprocess.synthetic import make_synthetic

    make_synthetic(folder, train=files * batch, validation=10, batch_size=batch)


def show(row):
    peer = f"{row['peer']:9.2f}" if "peer" in row else ""
    ratio = f"{row['ratio']:6.2f} {row['peer_spread']:7.1%}" if "ratio" in row else ""
    spread = f"{row['spread']:7.1%}" if "spread" in row else " " * 7
    print(f"{row['name']:58} {row['value']:9.2f} {spread} {peer} {ratio}")


def main():
    parser = report.parser(__doc__, quick="batch 8, 1 iteration")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=3, help="of a turn; ours has two turns (%(default)s)")
    parser.add_argument("--data", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        iterations = torch_iterations(options.data, options.batch)
        serve({kind: lambda each=each: next(each) for kind, each in iterations.items()})
        return 0
    batch, iterations = (8, 1) if options.quick else (options.batch, options.iterations)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        make_data(folder, batch)
        contestants = {OURS: TrainPy(folder, batch, ["cpu"]), TWO: TrainPy(folder, batch, ["cpu", "cpu"])}
        if importlib.util.find_spec("torch"):
            arguments = ["--batch", batch, "--data", folder, "--serve"]
            contestants[PYTORCH] = Peer(stack.enter_context(Program("benchmarks.table1", *arguments)))
        found = list(rows(measure(contestants, iterations), batch))
    print(f"{'':58} {'ours, s':>9} {'spread':>7} {'PyTorch':>9} {'ratio':>6} {'spread':>7}")
    for row in found:
        show(row)
    report.write(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
