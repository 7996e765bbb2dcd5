"""Clipping of the gradient by its global norm, before the update rule.

    norm = sqrt(sum of g**2 over all trainable parameters)
    g <- g * min(1, clip_norm / (norm + 1e-6))

Source: Pascanu et al. 2013, algorithm 1; clip_grad_norm_ of PyTorch for the 1e-6.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from alexnet.config import Section
from alexnet.config.fields import Amount

EPSILON = 1e-6                                   # in units of the gradient


class ClipSettings(Section):
    """The largest norm of a gradient; None: any."""

    clip_norm: Amount | None


def clip_by_global_norm(gradients: Sequence[TensorVariable], clip_norm: float) -> list[TensorVariable]:
    """Return the gradients, scaled so that the norm of all of them together is at most clip_norm.

    The weight decay of the update rule is added after it, as in PyTorch.
    """
    real = np.dtype(gradients[0].type.dtype).type        # a Python float might widen the graph to float64
    norm = pt.sqrt(reduce(add, [pt.sqr(g).sum() for g in gradients]))
    factor = pt.minimum(real(1), real(clip_norm) / (norm + real(EPSILON)))
    return [g * factor for g in gradients]
