"""Training cost and error measures: cross entropy and top-k error.

`logits` are float (class, batch), `labels` integer (batch,).
"""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable


def cross_entropy(logits: TensorVariable, labels: TensorVariable) -> TensorVariable:
    """Return the mean over the batch of -log softmax(logits)[label], in nats; ln(classes) for equal logits."""
    return -batch_mean(of_label(pt.special.log_softmax(logits, axis=0), labels), labels)


def training_cost(
    logits: TensorVariable, auxiliary: Sequence[tuple[float, TensorVariable]], labels: TensorVariable
) -> TensorVariable:
    """Return the cross entropy plus the weighted cross entropies of the auxiliary classifiers.

    Args:
        auxiliary: (weight, logits) of each auxiliary classifier.

    Source: Szegedy et al. 2014, section 5.
    """
    cost = cross_entropy(logits, labels)
    real = np.dtype(cost.type.dtype).type                # a Python float might widen the graph to float64
    return sum((real(weight) * cross_entropy(own, labels) for weight, own in auxiliary), cost)


def top_k_error(logits: TensorVariable, labels: TensorVariable, k: int) -> TensorVariable:
    """Return the share of the batch whose label is not among the k largest logits, between 0 and 1.

    Among equal logits the lower class ranks first, as in argmax. NaN ranks above every number, so NaN logits always
    count as an error.
    """
    own = of_label(logits, labels)
    lower_class = pt.lt(pt.arange(logits.shape[0]).dimshuffle(0, "x"), labels)
    ahead = pt.invert(pt.le(logits, own)) | (pt.eq(logits, own) & lower_class)
    return batch_mean(pt.ge(ahead.sum(axis=0), k).astype("float32"), labels)


def of_label(values: TensorVariable, labels: TensorVariable) -> TensorVariable:
    """Return the value of each image's label, (batch,), from values (class, batch)."""
    return values[labels, pt.arange(labels.shape[0])]


def batch_mean(values: TensorVariable, labels: TensorVariable) -> TensorVariable:
    """Return the mean of `values`, float (batch,).

    The batch size is taken from the labels. `values.mean()` derives it from the shapes of both indices instead, which
    adds run-time broadcasting assertions to the graph.
    """
    return values.sum() / labels.shape[0].astype(values.dtype)
