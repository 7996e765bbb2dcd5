"""A small network and a small data set, for the tests of everything around them."""

from pathlib import Path

import numpy as np

from alexnet import config, hkl
from alexnet.layers import LRN, Conv, Dense, Dropout, Flatten, Sequential
from alexnet.models import MODELS
from multigpu import worker
from multigpu.partners import Partners


class Tiny(Sequential):
    """AlexNet's kinds of layers, a thousandth of its work."""

    channels, image_size = 3, 227

    def __init__(self, rng, classes=10, dropout_rate=0.5):
        super().__init__(
            Conv(rng, 3, 4, size=11, stride=8, pool=(3, 2)), LRN(),                      # 4 x 13 x 13
            Conv(rng, 4, 6, size=3, stride=2, pad=1, groups=2, bias=0.1), Flatten(),     # 6 x 7 x 7
            Dense(rng, 294, 8), Dropout(dropout_rate, 3),
            Dense(rng, 8, classes, relu=False, std=0.01, bias=0.0),
        )  # fmt: skip


MODELS["tiny"] = Tiny


def tiny_work(*arguments):
    """multigpu.worker.work in a process that knows the tiny network, because it imports this file."""
    worker.work(*arguments)


def make_data(folder, train=24, validation=10, per_file=8, classes=3, seed=0):
    """A data set in upstream's layout: random images whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    for part in ("labels", "misc"):
        (folder / part).mkdir(parents=True)
    for name, n in (("train", train), ("val", validation)):
        labels = rng.integers(0, classes, n)
        (folder / f"{name}_hkl_b{per_file}_b_{per_file}").mkdir()
        images = rng.integers(0, 100, (3, 256, 256, n)) + 50 * labels
        for number, first in enumerate(range(0, n, per_file)):
            path = folder / f"{name}_hkl_b{per_file}_b_{per_file}" / f"{number:04d}.hkl"
            hkl.write(path, images[..., first : first + per_file].astype("uint8"))
        np.save(folder / "labels" / f"{name}_labels.npy", labels)
    np.save(folder / "misc" / "img_mean.npy", np.full((3, 256, 256), 100, "float32"))
    return folder


def settings(data, output, **changes):
    """The Config of a small run."""
    given = {"data": data, "output": output, "run_name": "run", "model": "tiny", "batch_size": 4, "n_epochs": 2}
    return config.load_config([f"{key}={value}" for key, value in (given | changes).items()])


class Line:
    """The worker's line to a launcher that is not there; asks to stop after `stop_after` questions."""

    def __init__(self, stop_after=None):
        self.left = stop_after

    def stop_requested(self):
        if self.left is not None:
            self.left -= 1
        return self.left is not None and self.left < 0

    def report(self, sentence, status=1):
        raise AssertionError(sentence)


def run(data, output, line=None, **changes):
    """Train in this process; returns the run's folder."""
    worker.work(settings(data, output, **changes), "cpu", line or Line(), Partners(0, {}))
    return Path(output) / changes.get("run_name", "run")
