"""Represent a network as the chain of steps used by Caffe and ONNX, and identify the model of a chain.

Caffe and ONNX have one step per operation. Our Conv corresponds to three steps: convolution, ReLU and max pooling
(alexnet.nn.layers pools before bias and ReLU, which gives the same values). The chain of a file must match a model in
every step and constant. Weights are therefore never used with a layer order, stride or constant that differs from those
they were trained with.
"""

import math
from typing import NamedTuple

from alexnet.models import MODELS
from alexnet.nn import layers
from alexnet.pretrained.weights import TORCHVISION, WeightsError

TOLERANCE = 1e-5                        # relative: files store constants as float32, and alpha multiplied by n


class Convolution(NamedTuple):
    """Cross-correlation with size x size filters, plus a bias. None: the file does not specify the value."""

    size: int
    stride: int | None
    pad: int | None
    groups: int | None
    filters: int


class Relu(NamedTuple):
    """max(x, 0)."""

    slope: float = 0.0                  # factor for negative values


class MaxPool(NamedTuple):
    """Maximum over windows of size x size pixels, one every `stride` pixels."""

    size: int
    stride: int
    pad: int = 0


class AveragePool(NamedTuple):
    """Mean over windows of size x size pixels, one every `stride` pixels."""

    size: int
    stride: int


class Branches(NamedTuple):
    """Parallel chains of (name, step) on the same input. Their outputs are concatenated along the channels."""

    chains: tuple


class Normalisation(NamedTuple):
    """x / (k + alpha * sum of x ** 2 over n channels) ** beta; alpha is not divided by n."""

    n: int
    k: float
    alpha: float
    beta: float


class Flatten(NamedTuple):
    """Reshape (channel, row, column) to one feature axis; the channel varies slowest."""


class Dense(NamedTuple):
    """W'x + b."""

    outputs: int


def steps_of(model):
    """Return (name of the layer, step) of each step of a Sequential. Names are conv1, lrn1, pool1, conv2 …

    Dropout and auxiliary classifiers have no steps because they are used only in training.

    Raises:
        WeightsError: a layer cannot be expressed as a step.
    """
    return [(name, step) for layer, name in zip(model.layers, model.names, strict=True) for step in layer_steps(layer)]


def layer_steps(layer):
    """Yield the steps of one layer."""
    match layer:
        case layers.Conv():
            op = layer.convolution
            yield Convolution(layer.size, layer.stride, layer.pad, op.groups, layer.filters)
            yield Relu()
            if layer.pool:
                yield MaxPool(layer.pool.size, layer.pool.stride, layer.pool.pad)
        case layers.MaxPool():
            yield MaxPool(layer.size, layer.stride, layer.pad)
        case layers.AveragePool():
            yield AveragePool(layer.size, layer.stride)
        case layers.Inception():
            yield Branches(tuple(map(steps_of, layer.parts)))
        case layers.LRN():
            op = layer.normalise
            yield Normalisation(op.n, op.k, op.alpha, op.beta)
        case layers.Flatten():
            yield Flatten()
        case layers.Dense():
            yield Dense(layer.outputs)
            if layer.relu:
                yield Relu()
        case layers.Dropout() | layers.Auxiliary():
            pass
        case _:
            raise WeightsError(f"a layer {type(layer).__name__} has no form in ONNX or Caffe")


def model_of(found, source, only=None):
    """Return the name of the model with the steps `found`.

    Args:
        found: steps of a network.
        source: name of the network in error messages, usually its path.
        only: name of a model. Compare only with this model, and only the steps that have weights.

    Raises:
        WeightsError: no model has these steps.
    """
    names = (only,) if only else tuple(MODELS)
    if not found or not isinstance(found[-1], Dense):
        raise WeightsError(f"{source} is another network than {either(names)}: it does not end in a dense layer")
    found = [*found[:-1], Dense(1)]                     # the number of classes may differ
    chains = {name: steps_of(MODELS[name](None, classes=1)) for name in names}
    if only:
        chains = {name: [(at, step) for at, step in chain if has_weights(step)] for name, chain in chains.items()}
    alike = {name: list(map(is_same, found, chain)) for name, chain in chains.items()}
    nearest = max(alike, key=lambda name: sum(alike[name]))
    if all(alike[nearest]) and len(found) == len(chains[nearest]):
        return nearest
    difference = first_difference(found, chains[nearest], alike[nearest], nearest)
    raise WeightsError(f"{source} is another network than {either(names)}: {difference}{torchvisions(found)}")


def has_weights(step):
    return isinstance(step, Convolution | Dense)


def is_same(step, named):
    """Whether a step has the type and constants of the step in the pair `named`, (name, step)."""
    return type(step) is type(named[1]) and not differing(step, named[1])


def differing(step, wanted):
    """Return the names of the fields in which two steps of one type differ."""
    return [name for name, value, right in zip(step._fields, step, wanted, strict=True) if not agrees(value, right)]


def agrees(value, right):
    return value is None or isinstance(value, int | float) and math.isclose(value, right, rel_tol=TOLERANCE)


def first_difference(found, chain, alike, model):
    """Describe the first difference between the steps `found` and the chain of a model.

    Args:
        alike: for each step, whether it equals that of the model.
    """
    if all(alike):
        end = len(alike)
        return f"it ends before {chain[end][0]} of {model}" if end < len(chain) else f"it goes on where {model} ends"
    at = alike.index(False)
    name, wanted = chain[at]
    if type(found[at]) is not type(wanted):
        return f"where {model} has {type(wanted).__name__} ({name}), it has {type(found[at]).__name__}"
    field = differing(found[at], wanted)[0]
    return f"its {name} has {field} {number(getattr(found[at], field))}, {model}'s {number(getattr(wanted, field))}"


def number(value):
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def either(names):
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def torchvisions(found):
    """Return a hint for the error message if the chain looks like torchvision's AlexNet, else an empty string."""
    convolutions = [step for step in found if isinstance(step, Convolution)]
    if convolutions and convolutions[0].filters == 64 and not any(isinstance(step, Normalisation) for step in found):
        return f"; {TORCHVISION}"
    return ""
