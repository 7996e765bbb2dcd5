"""Convert parameters from Caffe's layout.

Caffe uses BGR channels, as OpenCV does, filters (out, in / groups, row, column) and dense weights (out, in).
"""

from collections.abc import Iterable

import numpy as np

from alexnet.pretrained.graph import chain_of, weight_steps
from alexnet.pretrained.layout import from_out_in


def parameters(pairs: Iterable[tuple[np.ndarray, np.ndarray]], model: str) -> dict[str, np.ndarray]:
    """Return name -> array of the parameters of a model, for RGB images.

    Args:
        pairs: Caffe's (weights, bias) of each layer, in order.
        model: name in MODELS.
    """
    arrays: dict[str, np.ndarray] = {}
    for (name, _), (weights, bias) in zip(weight_steps(chain_of(model)), pairs, strict=True):
        converted = from_out_in(weights)
        arrays[f"{name}.W"] = converted if arrays else rgb(converted)
        arrays[f"{name}.b"] = bias
    return arrays


def rgb(array: np.ndarray) -> np.ndarray:
    """Convert the first axis of an array from BGR to RGB."""
    return np.ascontiguousarray(array[::-1])
