"""Identify the model of a file from its steps.

The steps of a file must match those of a model in every operator and attribute. Weights are therefore never used with a
layer order, stride or constant that differs from those they were trained with.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from alexnet.models import MODELS
from alexnet.nn.layer import Chain, Step, Value, dense_step
from alexnet.pretrained.weights import WeightsError

TOLERANCE = 1e-5                        # relative: files store constants as float32


def chain_of(model: str) -> Chain:
    """Return the steps of a model with one class, by the names of their layers; raises WeightsError."""
    known = MODELS[model].outline()
    if known.without_chain:
        raise WeightsError(known.without_chain)
    return known.chain


def weight_steps(chain: Chain) -> Chain:
    """Return the steps that have weights."""
    return [(name, step) for name, step in chain if step.parameters]


def model_of(found: Sequence[Step], source: str | Path, only: str | None = None) -> str:
    """Return the name of the model with the steps `found`.

    Args:
        found: steps of a network.
        source: name of the network in error messages, usually its path.
        only: name of a model. Compare only with this model, and only the steps that have weights.

    Raises:
        WeightsError: no model has these steps.
    """
    names = (only,) if only else tuple(name for name, model in MODELS.items() if not model.outline().without_chain)
    if not found or found[-1].operator != "Gemm":
        raise WeightsError(f"{source} is another network than {either(names)}: it does not end in a dense layer")
    found = [*found[:-1], dense_step(1)]                # the number of classes may differ
    chains = {name: weight_steps(chain_of(name)) if only else chain_of(name) for name in names}
    same = {name: list(map(is_same, found, (step for _, step in chain))) for name, chain in chains.items()}
    nearest = max(same, key=lambda name: sum(same[name]))
    if all(same[nearest]) and len(found) == len(chains[nearest]):
        return nearest
    difference = first_difference(found, chains[nearest], nearest)
    raise WeightsError(f"{source} is another network than {either(names)}: {difference}")


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
