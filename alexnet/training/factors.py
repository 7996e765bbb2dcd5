"""The gradient of a dense layer's weights as a product of two smaller arrays, its factors.

    dW = X G^T          X (inputs, batch): inputs of the layer, G (outputs, batch): gradient of its outputs

Workers can exchange the factors instead of the gradient. The mean over N workers is one product of the concatenated
factors, divided by N. A worker sends (N - 1) * batch * (inputs + outputs) numbers, and with an average by slices
2 (N - 1) / N * inputs * outputs.

Source: Xie et al. 2016, "Lighter-communication distributed machine learning via sufficient factor broadcasting",
section 3; Zhang et al. 2017, "Poseidon", section 3.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.variable import TensorVariable

from alexnet.ops import ConvolutionFilterGradient


class Factors(NamedTuple):
    """The factors of a gradient: x (inputs, batch) and g (outputs, batch)."""

    x: TensorVariable
    g: TensorVariable


def factors_of(gradient: Variable) -> Factors | None:
    """Return the factors of the weight gradient of a dense layer, or None for another gradient."""
    node = gradient.owner
    if node is not None and isinstance(node.op, DimShuffle):
        node = node.inputs[0].owner
    if node is None or not isinstance(node.op, ConvolutionFilterGradient) or gradient.ndim != 2:
        return None
    x, g = node.inputs[:2]
    if x.type.shape[1:3] != (1, 1) or g.type.shape[1:3] != (1, 1) or node.op.groups != 1:
        return None
    return Factors(x.dimshuffle(0, 3), g.dimshuffle(0, 3))


def size_of(shape: tuple[int, ...], batch: int, workers: int) -> float:
    """Return the size of the gradient for whose average a worker sends as many numbers as for gathering the factors.

    Args:
        shape: of the gradient, (inputs, outputs).
        batch: images of a worker.
    """
    return workers / 2 * batch * sum(shape)


def mean_product(factors: Sequence[Factors]) -> TensorVariable:
    """Return the mean over the workers of the products of their factors, float32 (inputs, outputs)."""
    x = pt.concatenate([each.x for each in factors], axis=1)
    g = pt.concatenate([each.g for each in factors], axis=1) * np.float32(1 / len(factors))
    image, outputs = x.dimshuffle(0, "x", "x", 1), g.dimshuffle(0, "x", "x", 1)
    return ConvolutionFilterGradient()(image, outputs, 1, 1).dimshuffle(0, 3)
