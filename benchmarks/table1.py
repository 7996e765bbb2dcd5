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

import contextlib
import importlib.util
import pathlib
import shutil
import sys
import tempfile

import numpy as np
from PIL import Image

from alexnet.run.recorder import read_records
from benchmarks.harness import report
from benchmarks.harness.program import TOP, Program, run, serve

OURS, TWO, PYTORCH = "one worker", "two workers", "PyTorch"
KINDS = {"parallel": "yes", "serial": "no"}
TURNS = (OURS, TWO, PYTORCH, OURS)
SIZE = 227
TRAIN_PY = TOP / "train.py"


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
        try:
            run(command)
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


def work(data, batch):
    """Main function of the PyTorch program: serve its iterations."""
    iterations = torch_iterations(data, int(batch))
    serve({kind: lambda each=each: next(each) for kind, each in iterations.items()})


def torch_iterations(data, batch):
    """Return {kind of loading: generator that runs one PyTorch iteration per item}."""
    import torch

    from benchmarks.harness.torch_alexnet import momentum_sgd, torch_alexnet

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


def table_rows(seconds, batch):
    """Yield a row per kind of loading and number of workers, and the gains of parallel loading and a second worker."""
    for name in (OURS, TWO):
        for kind, loading in KINDS.items():
            of_20 = {name: [20 * value for value in times] for name, times in seconds[kind].items()}
            made = report.row(f"20 iterations of {batch}, {name}, parallel loading: {loading}", of_20[name], "s")
            if PYTORCH in of_20:
                times = of_20[PYTORCH]
                made = report.compared(made, times, faster=True)
                made |= {"peer_spread": report.spread(times), "peer_runs": len(times)}
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


def rows(options):
    batch = options.batch
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        make_data(folder, batch)
        contestants = {OURS: TrainPy(folder, batch, ["cpu"]), TWO: TrainPy(folder, batch, ["cpu", "cpu"])}
        if importlib.util.find_spec("torch"):
            peer = Program("benchmarks.table1", "--worker", folder, batch)
            contestants[PYTORCH] = Peer(stack.enter_context(peer))
        yield from table_rows(measure(contestants, options.iterations), batch)


def add_options(parser):
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=3, help="of a turn; ours has two turns (%(default)s)")


if __name__ == "__main__":
    quick = {"batch": 8, "iterations": 1}
    raise SystemExit(report.main(rows, __doc__, "batch 8, 1 iteration", quick, add_options, work))
