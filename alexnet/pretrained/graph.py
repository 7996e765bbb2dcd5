"""Identify the model of a file from its steps.

The steps of a file must match those of a model in every operator and attribute. Weights are therefore never used with a
layer order, stride or constant that differs from those they were trained with.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from alexnet.models import MODELS
from alexnet.nn import Auxiliary, Sequential
from alexnet.nn.layer import Chain, Step, Value
from alexnet.ops.base import windows_along
from alexnet.pretrained.weights import WeightsError

TOLERANCE = 1e-5                        # relative: files store constants as float32


class AnotherNetwork(WeightsError):
    """A file contains a network that none of our models is.

    Args:
        source: name of the network in the message, usually its path.
        reason: what differs.
        known: name of the network, if it is known (alexnet.pretrained.known).
        models: the models that it was compared with.
    """

    def __init__(self, source: str | Path, reason: str, known: str | None = None, models: str = "ours") -> None:
        what = f"is {known}, which is not supported" if known else f"is another network than {models}"
        super().__init__(f"{source} {what}: {reason}")
        self.source = source
        self.reason = reason
        self.models = models

    def named(self, known: str | None) -> "AnotherNetwork":
        """Return the error with the name of the network."""
        return AnotherNetwork(self.source, self.reason, known, self.models)


def chain_of(model: str) -> Chain:
    """Return the steps of a model with one class, by the names of their layers; raises WeightsError."""
    known = MODELS[model].outline()
    if known.without_chain:
        raise WeightsError(known.without_chain)
    return known.chain


def towers_of(model: str) -> list[tuple[int, Chain]]:
    """Return (number of steps of the model before it, steps) of each auxiliary classifier of a model with one class."""
    network = MODELS[model](None, classes=1)
    towers = []
    before = 0
    for layer in network.layers:
        if isinstance(layer, Auxiliary):
            towers.append((before, layer.tower.named_steps()))
        else:
            before += len(Sequential(layer).named_steps())
    return towers


def weight_steps(chain: Chain) -> list[tuple[str, Step]]:
    """Return the steps that have weights, those of branches before their Concat."""
    return [(name, step) for name, step in in_sequence(chain) if step.parameters]


def in_sequence(chain: Chain) -> Iterator[tuple[str, Step]]:
    """Yield the steps of a chain, those of branches before their Concat."""
    for name, step in chain:
        for branch in step.branches:
            yield from in_sequence(branch)
        yield name, step


def comparable(chain: Chain, size: int | None) -> tuple[list[tuple[str, Step]], int | None]:
    """Return the steps of a chain in sequence and in one notation, and the size of their output.

    A rounding mode without effect is removed, and global pooling becomes pooling with a window of the image's size.

    Args:
        size: rows and columns of the input in pixels; None if unknown.
    """
    steps: list[tuple[str, Step]] = []
    for name, step in chain:
        if step.branches:
            branches, sizes = zip(*(comparable(branch, size) for branch in step.branches), strict=True)
            steps += [pair for branch in branches for pair in branch]
            step = step.replaced({"lengths": tuple(map(len, branches))})
            size = sizes[0]
        else:
            step, size = in_one_notation(step, size)
        steps.append((name, step))
    return steps, size


def in_one_notation(step: Step, size: int | None) -> tuple[Step, int | None]:
    """Return a step without branches in the notation of `comparable`, and the size of its output, None if unknown."""
    if step.operator not in ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool"):
        return step, size
    if step.operator == "GlobalAveragePool":
        return (Step("AveragePool", kernel_shape=size, strides=1) if size else step), 1
    window, stride, pad = (step.attributes.get(name, 0) for name in ("kernel_shape", "strides", "pads"))
    if not (isinstance(window, int) and isinstance(stride, int) and isinstance(pad, int) and size):
        return step, None                              # a file does not specify the values, or specifies unusual ones
    if not (0 < window <= size + 2 * pad and stride > 0):
        return step, None
    up = bool(step.attributes.get("ceil_mode"))
    windows = windows_along(size, window, stride, pad, up)
    if up and windows == windows_along(size, window, stride, pad):
        step = step.replaced({"ceil_mode": 0})
    return step, windows


def one_class(steps: Sequence[tuple[str, Step]]) -> list[tuple[str, Step]]:
    """Return the steps with one output of the last step that has weights: the number of classes may differ."""
    last = max((at for at, (_, step) in enumerate(steps) if step.parameters), default=-1)
    return [(name, step.replaced({}, outputs=1) if at == last else step) for at, (name, step) in enumerate(steps)]


def model_of(found: Sequence[Step], source: str | Path, only: str | None = None) -> str:
    """Return the name of the model with the steps `found`.

    Args:
        found: steps of a network.
        source: name of the network in error messages, usually its path.
        only: name of a model. Compare only with this model, and only the steps that have weights.

    Raises:
        AnotherNetwork: no model has these steps.
    """
    names = (only,) if only else tuple(name for name, model in MODELS.items() if not model.outline().without_chain)
    if not any(step.parameters for step in found):
        raise AnotherNetwork(source, "it has no layer with weights", models=either(names))
    pairs = {name: pairs_with(found, name, bool(only)) for name in names}
    same = {
        name: [is_same(step, wanted) for (_, step), (_, wanted) in zip(*pairs[name], strict=False)] for name in names
    }
    # most steps before the first difference, then most steps
    nearest = max(same, key=lambda name: ([*same[name], False].index(False), sum(same[name])))
    steps, wanted = pairs[nearest]
    if all(same[nearest]) and len(steps) == len(wanted):
        return nearest
    difference = first_difference([step for _, step in steps], wanted, nearest)
    raise AnotherNetwork(source, difference, models=either(names))


def pairs_with(
    found: Sequence[Step], model: str, only_weights: bool = False
) -> tuple[list[tuple[str, Step]], list[tuple[str, Step]]]:
    """Return the steps of a network and those of a model, to be compared one by one."""
    size = MODELS[model].image_size
    steps, wanted = (
        one_class(comparable(chain, size)[0]) for chain in ([("", step) for step in found], chain_of(model))
    )
    if only_weights:
        return weight_steps(steps), weight_steps(wanted)
    return steps, wanted


def same_steps(one: Sequence[tuple[str, Step]], other: Sequence[tuple[str, Step]]) -> bool:
    """Whether two chains have the same steps."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(is_same(mine, its) for (_, mine), (_, its) in pairs)


def is_same(step: Step, wanted: Step) -> bool:
    """Whether two steps have the same operator and attributes."""
    return step.operator == wanted.operator and not differences(step, wanted)


def differences(step: Step, wanted: Step) -> list[tuple[str, Value, Value]]:
    """Return (name, value, wanted value) of each attribute in which two steps of one operator differ."""
    one, other = ({**each.attributes, "outputs": each.outputs or 0} for each in (step, wanted))
    pairs = [(name, one.get(name, 0), other.get(name, 0)) for name in {**other, **one}]
    return [(name, value, right) for name, value, right in pairs if not agrees(value, right)]


def agrees(value: Value, right: Value) -> bool:
    """Whether a value of a file, None if the file does not specify it, is that of a model."""
    if isinstance(value, int | float) and isinstance(right, int | float):
        return math.isclose(value, right, rel_tol=TOLERANCE)
    return value is None or value == right


def first_difference(found: Sequence[Step], chain: Chain, model: str) -> str:
    """Describe the first difference between the steps `found` and the chain of a model."""
    for step, (name, wanted) in zip(found, chain, strict=False):
        if step.operator != wanted.operator:
            return f"where {model} has {wanted.operator} ({name}), it has {step.operator}"
        for attribute, value, right in differences(step, wanted):
            return f"its {name} has {attribute} {number(value)}, {model}'s {number(right)}"
    if len(found) < len(chain):
        return f"it ends before {chain[len(found)][0]} of {model}"
    return f"it continues where {model} ends"


def number(value: Value) -> str:
    """Format an attribute for an error message."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def either(names: Sequence[str]) -> str:
    """Join names: a, b or c."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
