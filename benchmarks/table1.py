"""The paper's table 1 on this machine: seconds per 20 iterations of 256 images, parallel loading yes and no.

python -m benchmarks.table1 [--quick] [--json FILE] [--batch 256] [--iterations 3]

One worker, real files of made images: ours reads batch files as train.py does, with the loader process and without.
The peer is the same network in PyTorch (channels_last), whose DataLoader decodes, resizes, crops and mirrors the
JPEGs that the batch files were made from, with one process and with none.  Ours runs, then PyTorch, then ours again.
With parallel loading the first iteration of a turn is not counted, because its images were read while the other ran.
A figure is 20 times the median of the iterations timed, of which `runs` and `peer runs` say how many; the paper timed
20.

On one Titan Black the paper has 32.76 s with parallel loading and 43.52 s without (cuDNN R2).

Source: Ding et al. 2014, table 1.
"""

import argparse
import contextlib
import importlib.util
import itertools
import pathlib
import tempfile

import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.program import Program, serve, warm_up

OURS, PYTORCH = "ours", "PyTorch"
KINDS = ("parallel", "serial")
TURNS = (OURS, PYTORCH, OURS)
SIZE = 227


# ---- the programs measured


def our_iterations(data, batch):
    """Kind of loading -> function that makes one iteration of training on the batch files of `data`."""
    from alexnet.augment import crop_stream, draw_crop
    from alexnet.compile import Network
    from alexnet.data import Request, open_dataset
    from alexnet.models import AlexNet
    from alexnet.updates import momentum_sgd
    from multigpu.loader import ParallelBatches, SerialBatches

    data = open_dataset(data)
    network = Network(AlexNet(np.random.default_rng(0), data.classes), data.mean, momentum_sgd)
    network.compile_all()

    def iterations(way):
        batches = way((data.mean, SIZE), (*data.mean.shape, batch), np.uint8)
        requests, labels = itertools.tee(itertools.cycle(data.train.plan(batch)))
        images = batches.read(Request(segments) for segments, _ in requests)
        for pixels, (_, names) in zip(images, labels, strict=False):
            crop = draw_crop(crop_stream(0, 0, 0), batch, SIZE)
            network.train(pixels, *crop, names, np.float32(1e-3))
            yield

    return {"parallel": iterations(ParallelBatches), "serial": iterations(SerialBatches)}


class Photographs:
    """The training JPEGs as a PyTorch data set: float32 (3, 227, 227) at a random crop and mirror, and the label."""

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
    """The same by PyTorch and its DataLoader."""
    import torch

    from benchmarks.torch_alexnet import momentum_sgd, torch_alexnet

    photographs = Photographs(pathlib.Path(data))
    network = torch_alexnet(classes=10).to(memory_format=torch.channels_last)
    optimizer = momentum_sgd(network)

    def iterations(processes):
        endless = torch.utils.data.RandomSampler(photographs, replacement=True, num_samples=10**8)     # no epochs
        batches = torch.utils.data.DataLoader(photographs, batch, sampler=endless, num_workers=processes)
        for images, labels in batches:
            optimizer.zero_grad()
            images = images.contiguous(memory_format=torch.channels_last)
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            yield

    return {"parallel": iterations(1), "serial": iterations(0)}


# ---- the measuring


def measure(programs, iterations):
    """kind -> name -> list of seconds; each turn of a program is `iterations` iterations of each kind."""
    seconds = {kind: {name: [] for name in programs} for kind in KINDS}
    warm_up(programs.values(), "serial")
    for name in (name for name in TURNS if name in programs):
        for kind in KINDS:
            if kind == "parallel":
                programs[name].step(kind)                # takes what was read while others ran
            seconds[kind][name] += [programs[name].step(kind)[0] for _ in range(iterations)]
    return seconds


def rows(seconds, batch):
    """A row for each kind of loading, and what parallel loading is worth."""
    for kind, loading in zip(KINDS, ("yes", "no"), strict=True):
        of_20 = {name: [20 * value for value in times] for name, times in seconds[kind].items()}
        made = report.row(f"20 iterations of {batch}, parallel loading: {loading}", of_20[OURS], "s")
        if PYTORCH in of_20:
            peer = report.row("", of_20[PYTORCH], "s")
            made |= {"peer": peer["value"], "ratio": peer["value"] / made["value"],
                     "peer_spread": peer["spread"], "peer_runs": peer["runs"]}  # fmt: skip
        yield made
    gains = {name: np.median(seconds["serial"][name]) / np.median(times) for name, times in seconds["parallel"].items()}
    peer = {"peer": float(gains[PYTORCH])} if PYTORCH in gains else {}
    yield {"name": "gained by parallel loading", "value": float(gains[OURS]), "unit": "times as fast", **peer}


def make_data(folder, batch):
    """The made set of preprocess, two batch files to train on."""
    from preprocess.synthetic import make_synthetic

    make_synthetic(folder, train=2 * batch, validation=10, batch_size=batch)


def show(row):
    peer = f"{row['peer']:9.2f}" if "peer" in row else ""
    ratio = f"{row['ratio']:6.2f} {row['peer_spread']:7.1%}" if "ratio" in row else ""
    spread = f"{row['spread']:7.1%}" if "spread" in row else " " * 7
    print(f"{row['name']:44} {row['value']:9.2f} {spread} {peer} {ratio}")


def main():
    parser = report.parser(__doc__, quick="batch 8, 1 iteration")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=3, help="of a turn; ours has two turns (%(default)s)")
    parser.add_argument("--data", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=(OURS, PYTORCH), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        iterations = (our_iterations if options.serve == OURS else torch_iterations)(options.data, options.batch)
        serve({kind: lambda each=each: next(each) for kind, each in iterations.items()})
        return 0
    batch, iterations = (8, 1) if options.quick else (options.batch, options.iterations)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        make_data(pathlib.Path(folder), batch)
        names = (OURS, PYTORCH) if importlib.util.find_spec("torch") else (OURS,)
        arguments = ["--batch", batch, "--data", folder, "--serve"]
        programs = {name: stack.enter_context(Program("benchmarks.table1", *arguments, name)) for name in names}
        found = list(rows(measure(programs, iterations), batch))
    print(f"{'':44} {'ours, s':>9} {'spread':>7} {'PyTorch':>9} {'ratio':>6} {'spread':>7}")
    for row in found:
        show(row)
    report.write(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
