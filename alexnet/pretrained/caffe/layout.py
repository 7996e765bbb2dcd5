"""Convert parameters from Caffe's layout.

Caffe uses BGR channels, as OpenCV does, filters (out, in / groups, row, column) and dense weights (out, in).
"""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from alexnet.nn.layer import Chain
from alexnet.pretrained.graph import chain_of, weight_steps
from alexnet.pretrained.layout import from_out_in

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]        # weights and bias


def parameters(pairs: Iterable[Pair], model: str) -> dict[str, np.ndarray]:
    """Return name -> array of the parameters of a model, for RGB images.

    Args:
        pairs: Caffe's (weights, bias) of each layer, in order.
        model: name in MODELS.
    """
    return converted(chain_of(model), pairs, images=True)


def converted(chain: Chain, pairs: Iterable[Pair], images: bool) -> dict[str, np.ndarray]:
    """Return name -> array of the parameters of a chain.

    Args:
        pairs: Caffe's (weights, bias) of each layer, in order.
        images: the input of the chain is images, which become RGB.
    """
    arrays: dict[str, np.ndarray] = {}
    for (name, _), (weights, bias) in zip(weight_steps(chain), pairs, strict=True):
        ours = from_out_in(weights)
        arrays[f"{name}.W"] = rgb(ours) if images and not arrays else ours
        arrays[f"{name}.b"] = bias
    return arrays


def rgb(array: np.ndarray) -> np.ndarray:
    """Convert the first axis of an array from BGR to RGB."""
    return np.ascontiguousarray(array[::-1])
