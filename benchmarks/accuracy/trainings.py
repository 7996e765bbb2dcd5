"""Data and trainings of this benchmark: the project's training loop with this project's network or PyTorch's."""

import contextlib
import json
import math
import pathlib

import numpy as np

from alexnet.config import load_config
from alexnet.data.dataset import open_dataset
from alexnet.data.image_listing import TRAIN_NAMES, VALIDATION_NAMES, find_images
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Diverged, Position, Run, read, train_epoch, training_batches
from alexnet.training.network import build_model, build_network
from benchmarks.accuracy.networks import Small
from multigpu.loader import SerialBatches
from multigpu.rules.single import SingleWorker
from preprocess.batches import Settings, make_batches
from preprocess.synthetic import make_synthetic

BATCH = 32


def made_data(source, folder, sizes):
    """Return the folder of a data set.

    Args:
        source: a folder of class folders, train/ and test/ or val/; a data set; or None for the synthetic set.
        folder: where a data set is made.
        sizes: number of training and validation images of the synthetic set.
    """
    if source is None:
        make_synthetic(folder / "synthetic", *sizes)
        return folder / "synthetic"
    halves = [next((source / name for name in names if (source / name).is_dir()), None)
              for names in (TRAIN_NAMES, VALIDATION_NAMES)]
    if None in halves:
        return source
    make_batches(find_images(*halves), folder / "batches", Settings(batch_size=BATCH), 1)
    return folder / "batches"


def command_line(data, epochs, **changes):
    """Return the settings of a training as arguments of train.py: the defaults of config.yaml, except these."""
    given = {
        "data": data, "model": name_of(Small), "batch_size": BATCH, "n_epochs": epochs,
        "learning_rate": 0.01, "lr_step": max(1, round(0.75 * epochs)), "threads": 1, "diagnosis": False,
        "verify_data": False,
    }
    return [f"{key}={value}" for key, value in (given | changes).items()]


def settings_of(data, epochs, **changes):
    """Return the Config of a training."""
    return load_config(command_line(data, epochs, **changes))


def name_of(model):
    return f"{model.__module__}:{model.__name__}"


class Epochs(WorkerRecorder):
    """A recorder that stores validation cost and top-1 error of each epoch."""

    def __init__(self):
        super().__init__(1)
        self.curve = []

    def epoch(self, **record):
        self.curve.append((record["cost"], record["top1_error"]))


def network_of(config, data, framework=None, **more):
    """Return this project's Network, or that of a TorchNetwork class with the same initial weights."""
    model = build_model(config, data.classes)
    model.wait()
    if framework:
        return framework(model, data.mean, config.dropout_rate, config.random_seed, **more)
    network = build_network(config, model, data.mean)
    network.compile_all()
    network.start_averages()
    return network


def run_of(config, data, network):
    """Return the Run of a network. The order of batches and the crops depend only on the seed."""
    shape = (*data.mean.shape, config.images_at_once)
    batches = SerialBatches((data.mean, network.model.image_size), shape, np.uint8)
    return Run(config, network, data, batches, SingleWorker(network), Epochs(), None, lambda: False)


def learning_curve(config, framework=None, **more):
    """Train; return (validation cost, top-1 error) after each epoch: (infinity, 1) once the training has diverged."""
    data = open_dataset(config.data, verify=False)
    run = run_of(config, data, network_of(config, data, framework, **more))
    position = Position()
    with contextlib.suppress(Diverged):
        for _ in range(config.n_epochs):
            position, _ = train_epoch(run, position)
    curve = run.recorder.curve
    return curve + [(math.inf, 1.0)] * (config.n_epochs - len(curve))


def first_batches(config, data, steps):
    """Return the inputs of the first steps of a training: images, crops, labels."""
    run = run_of(config, data, network_of(config, data, SizeOnly))
    batches, _ = training_batches(run, Position())
    with contextlib.closing(read(run, batches)) as pairs:
        return [batch.inputs(images.copy()) for _, (batch, images) in zip(range(steps), pairs, strict=False)]


class SizeOnly:
    """A network that is only asked for its image size."""

    def __init__(self, model, *_):
        self.model = model


class Curves:
    """Learning curves in a file, so that an interrupted benchmark continues with the next training.

    Args:
        path: JSON file, {name: {seed: curve}}; None: memory only.
    """

    def __init__(self, path=None):
        self.path = path
        self.curves = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}

    def get(self, name, seed, train):
        """Return the curve of a name and seed; train() computes it if the file lacks it."""
        group = self.curves.setdefault(name, {})
        if str(seed) not in group:
            group[str(seed)] = train()
            if self.path:
                pathlib.Path(self.path).write_text(json.dumps(self.curves, indent=1) + "\n", encoding="utf-8")
        return group[str(seed)]
