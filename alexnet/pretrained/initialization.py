"""Initialize a run: from scratch, from trained weights, or from a checkpoint.

Each start has a mean image, which the loader or the graph subtracts from every image of the run:

    FreshStart   the mean image of the data set
    FromWeights  the mean image that the weights were trained with, if known, as in fine-tuning with Caffe;
                 else that of the data set
    Resumed      the mean image of the checkpoint
    Replacement  that of the run

Source: BVLC Caffe, models/finetune_flickr_style, which uses the mean image of ImageNet.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alexnet import pretrained
from alexnet.config import Config, ConfigError
from alexnet.data.augment import UNSCALED, Scale
from alexnet.data.dataset import Dataset
from alexnet.data.image_listing import identity
from alexnet.models import Model
from alexnet.pretrained.assumptions import input_line
from alexnet.pretrained.weights import Weights
from alexnet.run import checkpoint
from alexnet.run.checkpoint import Snapshot
from alexnet.training.loop import Position
from alexnet.training.network import Network, layer_of, layers_within


@dataclass(frozen=True)
class Start(ABC):
    """How a run starts.

    mean            float32 (3, 256, 256), grey levels: subtracted from every image of the run
    scale           factor of each channel after that
    warnings        messages for the log
    layer_settings  description of new layers, frozen layers and layer learning rates; empty if there are none
    """

    mean: np.ndarray
    scale: Scale
    warnings: tuple[str, ...]
    layer_settings: str

    @abstractmethod
    def begin(self, network: Network, config: Config, workers: int) -> Position:
        """Set the state of the network for a run with `workers` workers; return the Position."""

    @abstractmethod
    def describe(self, position: Position) -> str:
        """Return the message for the log, which may be empty."""


class FreshStart(Start):
    """Start with the random initial weights of the network."""

    def begin(self, network: Network, config: Config, workers: int) -> Position:
        return Position()

    def describe(self, position: Position) -> str:
        return self.layer_settings


@dataclass(frozen=True)
class FromWeights(Start):
    """Start with trained weights in all layers except the new ones.

    arrays  name -> array of each parameter initialized from the weights
    origin  origin of the weights
    """

    arrays: dict[str, np.ndarray]
    origin: str

    def begin(self, network: Network, config: Config, workers: int) -> Position:
        network.set_parameters(self.arrays)
        return Position()

    def describe(self, position: Position) -> str:
        return f"starting from {self.origin}: {self.layer_settings or 'all layers trainable'}"


@dataclass(frozen=True)
class Resumed(Start):
    """Start with the state in a checkpoint.

    changes  description of the settings that differ from those of the checkpoint; empty if there are none
    """

    snapshot: Snapshot
    changes: str = ""

    def begin(self, network: Network, config: Config, workers: int) -> Position:
        return checkpoint.restore(self.snapshot, network, config, workers)

    def describe(self, position: Position) -> str:
        resuming = f"resuming from {self.snapshot.path}, after {position.iteration} iterations"
        changes = f"changed settings: {self.changes}" if self.changes else ""
        return "; ".join(filter(None, (resuming, changes, self.layer_settings)))


class Replacement(Start):
    """The start of a worker that replaces one that has died: the other workers will give it their state."""

    def begin(self, network: Network, config: Config, workers: int) -> Position:
        return Position()

    def describe(self, position: Position) -> str:
        return ""


def find_replacement_start(config: Config, data: Dataset) -> Replacement:
    """Return the Replacement of a run that started with these settings, or has saved the checkpoint that they name."""
    mean, scale = data.mean, UNSCALED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # the first start has logged them
        if config.resume_train:
            snapshot = checkpoint.load(config.resume_train, mean_only=True)
            mean, scale = snapshot.mean, snapshot.scale
        elif config.weights:
            weights = pretrained.load(config.weights)
            mean, scale = data.mean if weights.mean is None else weights.mean, weights.scale
    return Replacement(mean, scale, (), "")


def find_start(config: Config, data: Dataset, model: Model) -> Start:
    """Return the start selected by the settings. Everything is read and checked before the run writes anything.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is that of a run with other data.
        ConfigError: the weights cannot be read or do not fit, or a setting names an unknown layer.
    """
    layer_settings = describe_layer_settings(config)
    with warnings.catch_warnings(record=True) as caught:       # for the log, which is not open yet
        if config.resume_train:
            snapshot = checkpoint.load(config.resume_train)
            messages = (*sentences(caught), *checkpoint.check_data(snapshot.metadata, data, snapshot.path))
            changes = checkpoint.changed_settings(snapshot.metadata, config)
            return Resumed(snapshot.mean, snapshot.scale, messages, layer_settings, snapshot, changes)
        if not config.weights:
            return FreshStart(data.mean, UNSCALED, (), layer_settings)
        try:
            weights = pretrained.load(config.weights)
        except pretrained.WeightsError as error:
            raise ConfigError(f"weights: {error}") from error
    return from_weights(weights, model, config, data, sentences(caught), layer_settings)


def sentences(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    """Return the messages of warnings."""
    return tuple(str(warning.message) for warning in caught)


def from_weights(
    weights: Weights, model: Model, config: Config, data: Dataset, messages: tuple[str, ...], layer_settings: str
) -> FromWeights:
    """Return the start from Weights. `model` is a model with the current settings, used for its names and shapes."""
    if weights.model != config.model:
        raise ConfigError(
            f"weights: {config.weights} holds a network {weights.model}, this run has model={config.model}; "
            f"set model={weights.model}"
        )
    new = new_layers(weights, model, config, data)
    frozen = {each for name in config.frozen_layers for each in layers_within(model, name)}
    if both := frozen & set(new):
        raise ConfigError(f"frozen_layers: {min(both)} starts with new weights, so it must be trainable")
    kept_classes = [name for name in model.classifiers if name not in new]
    if kept_classes and weights.classes != data.classes:
        raise ConfigError(
            f"new_layers: {kept_classes[-1]} has {weights.classes} classes in {config.weights}, {data.path} has "
            f"{data.classes}; so set new_layers={','.join((*new, *kept_classes))}"
        )
    kept = [parameter.name for name, each in model.weight_layers.items() if name not in new for parameter in each]
    if weights.mean is None:
        messages += (f"{config.weights} comes without a mean image; that of {data.path} is subtracted",)
    if weights.resize != data.resize:
        messages += (
            f"{config.weights} was trained on images resized by {weights.resize}, those of {data.path} are by "
            f"{data.resize}; `python -m preprocess imagenet --resize {weights.resize}` resizes as the weights need",
        )
    return FromWeights(
        mean=data.mean if weights.mean is None else weights.mean,
        scale=weights.scale,
        arrays={name: weights.arrays[name] for name in kept},
        origin=f"{weights.origin or config.weights} ({input_line(weights)})",
        warnings=messages,
        layer_settings="; ".join(
            filter(None, (describe_new_layers(new, model.classifiers, weights, data), layer_settings))
        ),
    )


def new_layers(weights: Weights, model: Model, config: Config, data: Dataset) -> tuple[str, ...]:
    """Return the names of the layers that start with new weights.

    They are set by new_layers. With new_layers=auto, they are the classifiers if the classes differ, else none. Layers
    of auxiliary classifiers are also new if the weights do not have them.
    """
    chosen: tuple[str, ...] = ()
    if config.new_layers != ("auto",):
        for name in config.new_layers:
            layer_of(model, name, "new_layers")
        chosen = tuple(each for name in config.new_layers for each in layers_within(model, name))
    elif weights.classes != data.classes or not same_classes(weights.class_names, data.class_names):
        chosen = model.classifiers
    absent = (
        name for name, layer in model.weight_layers.items()
        if not {parameter.name for parameter in layer} <= weights.arrays.keys()
    )
    return tuple(dict.fromkeys((*absent, *chosen)))


def describe_new_layers(new: Sequence[str], classifiers: Sequence[str], weights: Weights, data: Dataset) -> str:
    """Describe the layers that start with new weights, and why classifiers do; empty if there are none."""
    if not new:
        return ""
    classes = f" ({weights.classes} classes there, {data.classes} here)" if {*classifiers} & {*new} else ""
    if classes and weights.classes == data.classes:
        classes = f" ({data.classes} other classes)"
    return f"{', '.join(new)} {'are' if len(new) > 1 else 'is'} new{classes}"


def same_classes(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Whether two lists of class names of equal length name the same classes. An empty list or None matches any."""
    return not one or not other or list(map(identity, one)) == list(map(identity, other))


def describe_layer_settings(config: Config) -> str:
    """Describe the frozen layers and the layer learning rates; empty with the default settings."""
    frozen = ", ".join(config.frozen_layers)
    parts = [f"{frozen} {'do' if len(config.frozen_layers) > 1 else 'does'} not change"] if frozen else []
    parts += [f"{name} learns {rate:g} × as fast" for name, rate in config.layer_rates.items()]
    return "; ".join(parts)
