"""A network as the chain of steps that other frameworks write it in, and which of our models a chain is.

Caffe and ONNX have a step for each thing that is done; our Conv is three of them (alexnet.layers pools before bias and
ReLU, which gives the same values).  A file's chain must be that of a model in every step and constant: so weights
never meet another order of the layers, another stride or another constant than they were trained with.
"""

import math
from typing import NamedTuple

from alexnet import layers
from alexnet.models import MODELS
from alexnet.pretrained.weights import TORCHVISION, WeightsError

TOLERANCE = 1e-5                        # relative: files hold constants as float32, and alpha times n


class Convolution(NamedTuple):
    """Cross-correlation with size x size filters, and a bias.  None stands for what a file does not say."""

    size: int
    stride: int | None
    pad: int | None
    groups: int | None
    filters: int


class Relu(NamedTuple):
    """max(x, 0)."""

    slope: float = 0.0                  # of what is negative


class MaxPool(NamedTuple):
    """The largest of size x size pixels, each stride pixels."""

    size: int
    stride: int
    pad: int = 0


class AveragePool(NamedTuple):
    """The mean of size x size pixels, each stride pixels."""

    size: int
    stride: int


class Branches(NamedTuple):
    """Chains of (name, step) on the same images; what they end in is joined along the channels."""

    chains: tuple


class Normalisation(NamedTuple):
    """x / (k + alpha * sum of x ** 2 over n channels) ** beta; alpha is not divided by n."""

    n: int
    k: float
    alpha: float
    beta: float


class Flatten(NamedTuple):
    """(channel, row, column) to features, channels outermost."""


class Dense(NamedTuple):
    """W'x + b."""

    outputs: int


def steps_of(model):
    """(name, step) of each step of a Sequential; the name is its layer's: conv1, lrn1, pool1, conv2 …

    Dropout and auxiliary classifiers are no steps: they do nothing but in training.  Raises WeightsError for a layer
    that has no step.
    """
    return [(name, step) for layer, name in zip(model.layers, model.names, strict=True) for step in layer_steps(layer)]


def layer_steps(layer):
    """The steps of one layer."""
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
    """The name of the model that the steps `found` are; raises WeightsError for another network.

    source  what the message calls them: their path
    only    the one model that it may be, by those steps alone that have weights
    """
    names = (only,) if only else tuple(MODELS)
    if not found or not isinstance(found[-1], Dense):
        raise WeightsError(f"{source} is another network than {either(names)}: it does not end in a dense layer")
    found = [*found[:-1], Dense(1)]                     # any number of classes
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
    """Whether a step is that of a (name, step), in kind and constants."""
    return type(step) is type(named[1]) and not differing(step, named[1])


def differing(step, wanted):
    """The names of the fields in which two steps of one kind are not the same."""
    return [name for name, value, right in zip(step._fields, step, wanted, strict=True) if not agrees(value, right)]


def agrees(value, right):
    return value is None or isinstance(value, int | float) and math.isclose(value, right, rel_tol=TOLERANCE)


def first_difference(found, chain, alike, model):
    """Where and how the steps leave a model's chain, in words; alike says which are the same."""
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
    """What to add where a chain looks like torchvision's network of the same name."""
    convolutions = [step for step in found if isinstance(step, Convolution)]
    if convolutions and convolutions[0].filters == 64 and not any(isinstance(step, Normalisation) for step in found):
        return f"; {TORCHVISION}"
    return ""
