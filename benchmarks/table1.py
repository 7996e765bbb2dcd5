"""The paper's table 1 on this machine: seconds per 20 iterations of 256 images, parallel loading yes and no.

python -m benchmarks.table1 [--quick] [--json FILE] [--batch 256] [--iterations 5] [--runs 3]

One worker, real files: ours reads batch files as train.py does, with the loader process and without; the peer is the
same network in PyTorch (channels_last) whose DataLoader decodes, resizes, crops and mirrors the JPEGs that the batch
files were made from, with one process and with none.  The programs take turns; each run is a stretch of --iterations,
shown as the time of 20.

Source: Ding et al. 2014, table 1.
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile

import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.program import Program, serve, take_turns

PARALLEL = {"ours, loader": True, "ours, no loader": False, "PyTorch, 1 process": True, "PyTorch, no process": False}
SIZE = 227


def our_iterations(data, batch, parallel):
    """A function that makes n iterations of training on the batch files of `data`."""
    from alexnet.augment import crop_stream, draw_crop
    from alexnet.compile import Network
    from alexnet.data import Request, open_dataset
    from alexnet.models import AlexNet
    from alexnet.updates import momentum_sgd
    from multigpu.loader import ParallelBatches, SerialBatches

    data = open_dataset(data)
    network = Network(AlexNet(np.random.default_rng(0), data.classes), data.mean, momentum_sgd)
    network.compile_all()
    way = ParallelBatches if parallel else SerialBatches
    batches = way((data.mean, SIZE), (*data.mean.shape, batch), np.uint8)
    plan = itertools.cycle(data.train.plan(batch))
    first, second = itertools.tee(plan)
    images = batches.read(Request(segments) for segments, _ in first)

    def iterations(n):
        for _, labels in itertools.islice(second, n):
            crop = draw_crop(crop_stream(0, 0, 0), batch, SIZE)
            network.train(next(images), *crop, labels, np.float32(1e-3))

    return iterations


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


def torch_iterations(data, batch, parallel):
    """The same by PyTorch and its DataLoader."""
    import torch

    from benchmarks.torch_alexnet import torch_alexnet

    photographs = Photographs(pathlib.Path(data))
    endless = torch.utils.data.RandomSampler(photographs, replacement=True, num_samples=10**8)     # no pause for epochs
    batches = iter(torch.utils.data.DataLoader(photographs, batch, sampler=endless, num_workers=int(parallel)))
    network = torch_alexnet(classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def iterations(n):
        for images, labels in itertools.islice(batches, n):
            optimizer.zero_grad()
            images = images.to(memory_format=torch.channels_last)
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

    return iterations


def rows(data, batch, iterations, runs):
    arguments = ["--batch", batch, "--iterations", iterations, "--data", data, "--serve"]
    programs = {name: Program("benchmarks.table1", *arguments, name) for name in PARALLEL}
    try:
        seconds, _ = take_turns(programs, "iterations", runs, warm_up=1)
    finally:
        for program in programs.values():
            program.close()
    medians = {name: statistics.median(times) * 20 / iterations for name, times in seconds.items()}
    for name, times in seconds.items():
        peers = [value for peer, value in medians.items() if "PyTorch" in peer and PARALLEL[peer] == PARALLEL[name]]
        spread = (max(times) - min(times)) / statistics.median(times)
        yield {
            "name": f"20 iterations of {batch}, {name}",
            "value": medians[name],
            "unit": "s",
            "spread": spread,
            "peer": peers[0],
            "ratio": peers[0] / medians[name],
        }


def make_data(folder, batch):
    """The made set of preprocess, two batch files to train on."""
    from preprocess.synthetic import make_synthetic

    make_synthetic(folder, train=2 * batch, validation=10, batch_size=batch)


def main():
    parser = report.parser(__doc__, quick="batch 8, 2 iterations, 1 run")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=5, help="of one run (%(default)s)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=PARALLEL, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        make = our_iterations if options.serve.startswith("ours") else torch_iterations
        iterations = make(options.data, options.batch, PARALLEL[options.serve])
        serve({"iterations": lambda: iterations(options.iterations)})
        return 0
    batch, iterations, runs = (8, 2, 1) if options.quick else (options.batch, options.iterations, options.runs)
    with tempfile.TemporaryDirectory() as folder:
        make_data(pathlib.Path(folder), batch)
        results = list(rows(folder, batch, iterations, runs))
    print(f"{'':48} {'seconds':>8} {'spread':>7} {'ratio':>6}")
    for row in results:
        print(f"{row['name']:48} {row['value']:8.2f} {row['spread']:7.1%} {row['ratio']:6.2f}")
    print("ratio: PyTorch's seconds with the same number of loading processes to these")
    report.write(results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
