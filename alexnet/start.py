"""How a run starts: anew, from trained weights, or where a checkpoint stands.

A start has the mean image that is subtracted from every image of the run, the loader's and the graph's:

    Anew         the data's
    FromWeights  the one that the weights were trained with, where they have one, as Caffe's fine-tuning does it
    Resumed      the checkpoint's

Source: BVLC Caffe, models/finetune_flickr_style, whose mean is ImageNet's.
"""

import warnings
from typing import NamedTuple

import numpy as np

from alexnet import pretrained, snapshots
from alexnet.compile import layer_of, layers_within, set_pace
from alexnet.config import ConfigError
from alexnet.models import model_class
from alexnet.snapshots import Snapshot
from alexnet.sources import identity
from alexnet.training import Position


class Anew(NamedTuple):
    """Initial weights, which the network has drawn."""

    mean: np.ndarray
    warnings: tuple[str, ...] = ()
    pace: str = ""

    def begin(self, network, config, workers):
        """Bring the network, of `workers` workers, to this start; returns the Position."""
        return Position()

    def sentence(self, position):
        """What the log has to say of it; may be empty."""
        return self.pace


class FromWeights(NamedTuple):
    """Trained weights, but for those of new layers.

    arrays  name -> array of each parameter that begins with them
    origin  where they come from
    pace    which layers are new, and which learn how
    """

    mean: np.ndarray
    arrays: dict[str, np.ndarray]
    origin: str
    warnings: tuple[str, ...]
    pace: str

    def begin(self, network, config, workers):
        network.set_parameters(self.arrays)
        return Position()

    def sentence(self, position):
        return f"starting from {self.origin}: {self.pace or 'all its layers, which learn as ever'}"


class Resumed(NamedTuple):
    """The state in a checkpoint."""

    mean: np.ndarray
    snapshot: Snapshot
    warnings: tuple[str, ...]
    pace: str

    def begin(self, network, config, workers):
        return snapshots.restore(self.snapshot, network, config, workers)

    def sentence(self, position):
        going_on = f"going on from {self.snapshot.path}, after {position.iteration} iterations"
        return "; ".join(filter(None, (going_on, self.pace)))


def find_start(config, data):
    """The start that the settings ask for, read and checked before anything is written.

    data  alexnet.data.Dataset
    Raises CheckpointError; ConfigError for weights that cannot be read or do not fit, and for unknown layers.
    """
    model = model_class(config.model)(None, classes=data.classes)
    set_pace(model, config)
    pace = described_pace(config)
    with warnings.catch_warnings(record=True) as caught:       # the log that they belong in is not open yet
        if config.resume_train:
            snapshot = snapshots.load(config.resume_train)
            return Resumed(snapshot.mean, snapshot, sentences(caught), pace)
        if not config.weights:
            return Anew(data.mean, pace=pace)
        try:
            weights = pretrained.load(config.weights)
        except pretrained.WeightsError as error:
            raise ConfigError(f"weights: {error}") from error
    return from_weights(weights, model, config, data, sentences(caught), pace)


def sentences(caught):
    return tuple(str(warning.message) for warning in caught)


def from_weights(weights, model, config, data, said, pace):
    """The start from Weights; `model` is one of the settings, for its names and shapes."""
    if weights.model != config.model:
        raise ConfigError(
            f"weights: {config.weights} holds a network {weights.model}, this run has model={config.model}; "
            f"say model={weights.model}"
        )
    new = new_layers(weights, model, config, data)
    frozen = {each for name in config.frozen_layers for each in layers_within(model, name)}
    if both := frozen & set(new):
        raise ConfigError(f"frozen_layers: {min(both)} begins with new weights, so it has to learn")
    kept_classes = [name for name in model.classifiers if name not in new]
    if kept_classes and weights.classes != data.classes:
        raise ConfigError(
            f"new_layers: {kept_classes[-1]} has {weights.classes} classes in {config.weights}, {data.path} has "
            f"{data.classes}; so it has to be new: new_layers={','.join((*new, *kept_classes))}"
        )
    kept = [parameter.name for name, each in model.weight_layers.items() if name not in new for parameter in each]
    if weights.mean is None:
        said += (f"{config.weights} comes without a mean image; that of {data.path} is subtracted",)
    if weights.resize != data.resize:
        said += (
            f"{config.weights} was trained on images resized by {weights.resize}, those of {data.path} are by "
            f"{data.resize}; `python -m preprocess imagenet --resize {weights.resize}` makes them alike",
        )
    return FromWeights(
        mean=data.mean if weights.mean is None else weights.mean,
        arrays={name: weights.arrays[name] for name in kept},
        origin=weights.origin or str(config.weights),
        warnings=said,
        pace="; ".join(filter(None, (described_new(new, model.classifiers, weights, data), pace))),
    )


def new_layers(weights, model, config, data):
    """The names of the layers that begin with new weights: those of the settings, or what auto finds."""
    if config.new_layers != ("auto",):
        for name in config.new_layers:
            layer_of(model, name, "new_layers")
        return tuple(each for name in config.new_layers for each in layers_within(model, name))
    if weights.classes == data.classes and same_classes(weights.class_names, data.class_names):
        return ()
    return model.classifiers


def described_new(new, classifiers, weights, data):
    """What begins with new weights, and why the layers do whose outputs are classes; empty where nothing does."""
    if not new:
        return ""
    classes = f" ({weights.classes} classes there, {data.classes} here)" if {*classifiers} & {*new} else ""
    if classes and weights.classes == data.classes:
        classes = f" ({data.classes} other classes)"
    return f"{', '.join(new)} {'are' if len(new) > 1 else 'is'} new{classes}"


def same_classes(one, other):
    """Whether two lists of as many class names mean the same; what nobody has named may be."""
    return not one or not other or list(map(identity, one)) == list(map(identity, other))


def described_pace(config):
    """What learns slower, faster or not at all; empty where all is as ever."""
    frozen = ", ".join(config.frozen_layers)
    parts = [f"{frozen} {'do' if len(config.frozen_layers) > 1 else 'does'} not change"] if frozen else []
    parts += [f"{name} learns {rate:g} × as fast" for name, rate in config.layer_rates.items()]
    return "; ".join(parts)
