"""Initialize a run: from scratch, from trained weights, or from a checkpoint.

Each start has a mean image, which the loader or the graph subtracts from every image of the run:

    FreshStart   the mean image of the data set
    FromWeights  the mean image that the weights were trained with, if known, as in fine-tuning with Caffe;
                 else that of the data set
    Resumed      the mean image of the checkpoint

Source: BVLC Caffe, models/finetune_flickr_style, which uses the mean image of ImageNet.
"""

import warnings
from typing import NamedTuple

import numpy as np

from alexnet import pretrained
from alexnet.config.schema import ConfigError
from alexnet.data.image_listing import identity
from alexnet.models import model_class
from alexnet.run import checkpoint
from alexnet.run.checkpoint import Snapshot
from alexnet.training.loop import Position
from alexnet.training.network import apply_layer_settings, layer_of, layers_within


class FreshStart(NamedTuple):
    """Start with the random initial weights of the network."""

    mean: np.ndarray
    warnings: tuple[str, ...] = ()
    pace: str = ""

    def begin(self, network, config, workers):
        """Set the state of the network for a run with `workers` workers; returns the Position."""
        return Position()

    def sentence(self, position):
        """Return the message for the log, which may be empty."""
        return self.pace


class FromWeights(NamedTuple):
    """Start with trained weights in all layers except the new ones.

    arrays  name -> array of each parameter initialized from the weights
    origin  origin of the weights
    pace    description of the new layers and of the layer learning rates
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
    """Start with the state in a checkpoint."""

    mean: np.ndarray
    snapshot: Snapshot
    warnings: tuple[str, ...]
    pace: str

    def begin(self, network, config, workers):
        return checkpoint.restore(self.snapshot, network, config, workers)

    def sentence(self, position):
        going_on = f"resuming from {self.snapshot.path}, after {position.iteration} iterations"
        return "; ".join(filter(None, (going_on, self.pace)))


def find_start(config, data):
    """Return the start selected by the settings. Everything is read and checked before the run writes anything.

    Args:
        config: the settings.
        data: alexnet.data.Dataset

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: the weights cannot be read or do not fit, or a setting names an unknown layer.
    """
    model = model_class(config.model)(None, classes=data.classes)
    apply_layer_settings(model, config)
    pace = described_pace(config)
    with warnings.catch_warnings(record=True) as caught:       # for the log, which is not open yet
        if config.resume_train:
            snapshot = checkpoint.load(config.resume_train)
            return Resumed(snapshot.mean, snapshot, sentences(caught), pace)
        if not config.weights:
            return FreshStart(data.mean, pace=pace)
        try:
            weights = pretrained.load(config.weights)
        except pretrained.WeightsError as error:
            raise ConfigError(f"weights: {error}") from error
    return from_weights(weights, model, config, data, sentences(caught), pace)


def sentences(caught):
    return tuple(str(warning.message) for warning in caught)


def from_weights(weights, model, config, data, said, pace):
    """Return the start from Weights. `model` is a model with the current settings, used for its names and shapes."""
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
    """Return the names of the layers that start with new weights.

    They are set by new_layers. With new_layers=auto, they are the classifiers if the classes differ, else none.
    """
    if config.new_layers != ("auto",):
        for name in config.new_layers:
            layer_of(model, name, "new_layers")
        return tuple(each for name in config.new_layers for each in layers_within(model, name))
    if weights.classes == data.classes and same_classes(weights.class_names, data.class_names):
        return ()
    return model.classifiers


def described_new(new, classifiers, weights, data):
    """Describe the layers that start with new weights, and why classifiers do; empty if there are none."""
    if not new:
        return ""
    classes = f" ({weights.classes} classes there, {data.classes} here)" if {*classifiers} & {*new} else ""
    if classes and weights.classes == data.classes:
        classes = f" ({data.classes} other classes)"
    return f"{', '.join(new)} {'are' if len(new) > 1 else 'is'} new{classes}"


def same_classes(one, other):
    """Whether two lists of class names of equal length name the same classes. An empty list or None matches any."""
    return not one or not other or list(map(identity, one)) == list(map(identity, other))


def described_pace(config):
    """Describe the frozen layers and the layer learning rates; empty with the default settings."""
    frozen = ", ".join(config.frozen_layers)
    parts = [f"{frozen} {'do' if len(config.frozen_layers) > 1 else 'does'} not change"] if frozen else []
    parts += [f"{name} learns {rate:g} × as fast" for name, rate in config.layer_rates.items()]
    return "; ".join(parts)
