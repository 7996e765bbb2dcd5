"""A small network and a small data set for tests."""

import contextlib
import os
from pathlib import Path
from unittest import mock

import numpy as np

from alexnet.config import load_config
from alexnet.data import batch_file
from alexnet.models import MODELS, Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten
from alexnet.plots.report.run_report import RunReport
from alexnet.run import checkpoint_format
from multigpu import worker
from multigpu.communicator import PipeCommunicator


@MODELS.register("tiny")
class Tiny(Model):
    """A network with AlexNet's kinds of layers and a thousandth of its work."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=11, stride=8, pool=(3, 2)), LRN(),                      # 4 x 13 x 13
            Conv(rng, 4, 6, size=3, stride=2, pad=1, groups=2, bias=0.1), Flatten(),     # 6 x 7 x 7
            Dense(rng, 294, 8), Dropout(dropout_rate),
            Dense(rng, 8, classes, relu=False, std=0.01, bias=0.0),
        )


def without_pictures(drawn):
    """Return a context in which runs draw no pictures, unless `drawn`: drawing takes longer than a tiny training."""
    return contextlib.nullcontext() if drawn else mock.patch.object(RunReport, "draw", lambda report, position: None)


def tiny_work(*arguments):
    """multigpu.worker.work in a process where the tiny network is registered, because it imports this module.

    The run draws pictures only if the environment contains PICTURES.
    """
    with without_pictures("PICTURES" in os.environ):
        worker.work(*arguments)


def make_data(folder, train=24, validation=10, per_file=8, classes=3, seed=0):
    """Create a data set in upstream's layout: random images whose brightness depends on the class."""
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
            batch_file.write(path, images[..., first : first + per_file].astype("uint8"))
        np.save(folder / "labels" / f"{name}_labels.npy", labels)
    np.save(folder / "misc" / "img_mean.npy", np.full((3, 256, 256), 100, "float32"))
    return folder


def settings(data, output, **changes):
    """Return the Config of a small run."""
    given = {
        "data": data, "output": output, "run_name": "run", "model": "tiny", "batch_size": 4, "n_epochs": 2,
        "diagnosis": "false",
    }
    return load_config([f"{key}={value}" for key, value in (given | changes).items()])


class Line:
    """A replacement for the worker's link to its launcher; it requests a stop after `stop_after` queries."""

    def __init__(self, stop_after=None):
        self.left = stop_after

    def stop_requested(self):
        if self.left is not None:
            self.left -= 1
        return self.left is not None and self.left < 0

    def stopping(self):
        return False

    def report(self, sentence, status=1):
        raise AssertionError(sentence)

    def log_to(self, path):
        pass


def run(data, output, line=None, pictures=False, **changes):
    """Train in this process; return the folder of the run."""
    with without_pictures(pictures):
        worker.work(settings(data, output, **changes), "cpu", line or Line(), PipeCommunicator(0, {}))
    return Path(output) / changes.get("run_name", "run")


def final(folder):
    """Return the arrays of the newest checkpoint of a run."""
    return checkpoint_format.load(checkpoint_format.latest(folder))[0]


def resume_copy(folder, iteration, data, output, **changes):
    """Resume a copy of a run from its checkpoint of an iteration; return the copy's folder."""
    copy = Path(output) / "run"
    copy.mkdir()
    path = checkpoint_format.snapshot_path(folder, iteration)
    (copy / path.name).write_bytes(path.read_bytes())
    run(data, output, resume_train=copy, **changes)
    return copy
