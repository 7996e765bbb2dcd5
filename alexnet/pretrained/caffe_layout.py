"""How Caffe lays out what our networks lay out otherwise: colours BGR, since OpenCV reads images so, filters
(out, in / groups, row, column), dense weights (out, in)."""

import numpy as np

from alexnet.models import MODELS
from alexnet.pretrained.chain import Convolution, has_weights, steps_of

STRIPE = 16                             # rows: floats of a cache line of 64 bytes


def parameters(pairs, model):
    """Name -> array of a model's parameters, for RGB images, from Caffe's (weights, bias) of each layer, in order."""
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
    """An array whose first axis is BGR, as RGB."""
    return np.ascontiguousarray(array[::-1])


def transposed(matrix):
    """A contiguous copy of the transpose, made in stripes: four times as fast as NumPy's for a large one."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for row in range(0, len(matrix), STRIPE):
        out[:, row : row + STRIPE] = matrix[row : row + STRIPE].T
    return out
