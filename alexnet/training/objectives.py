"""Training cost and error measures: cross entropy and top-k error.

`logits` are float (class, batch), `labels` integer (batch,).
"""

from collections.abc import Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from alexnet.config import Section
from alexnet.config.fields import Share


class CostSettings(Section):
    """The cost of training; that of validation is the cross entropy."""

    label_smoothing: Share


def cross_entropy(logits: TensorVariable, labels: TensorVariable) -> TensorVariable:
    """Return the mean over the batch of -log softmax(logits)[label], in nats; ln(classes) for equal logits."""
    return -batch_mean(of_label(pt.special.log_softmax(logits, axis=0), labels), labels)


def smoothed_cross_entropy(logits: TensorVariable, labels: TensorVariable, smoothing: float) -> TensorVariable:
    """Return the cross entropy with the label's probability reduced from 1, mean over the batch, in nats.

        -sum over classes k of q_k log softmax(logits)_k,  q_k = (1 - smoothing) * [k = label] + smoothing / classes

    With smoothing 0 the graph is that of cross_entropy().

    Source: Szegedy et al. 2016, section 7, with the uniform distribution as u.
    """
    if not smoothing:
        return cross_entropy(logits, labels)
    real = np.dtype(logits.type.dtype).type              # a Python float might widen the graph to float64
    log_probability = pt.special.log_softmax(logits, axis=0)
    of_labels = batch_mean(of_label(log_probability, labels), labels)
    of_all = batch_mean(log_probability, labels) / logits.shape[0].astype(logits.dtype)
    return -(real(1 - smoothing) * of_labels + real(smoothing) * of_all)


def training_cost(
    logits: TensorVariable, auxiliary: Sequence[tuple[float, TensorVariable]], labels: TensorVariable,
    smoothing: float = 0.0,
) -> TensorVariable:
    """Return the cross entropy plus the weighted cross entropies of the auxiliary classifiers.

    Args:
        auxiliary: (weight, logits) of each auxiliary classifier.
        smoothing: of the labels of all classifiers, 0 to 1; see smoothed_cross_entropy().

    Source: Szegedy et al. 2014, section 5.
    """
    cost = smoothed_cross_entropy(logits, labels, smoothing)
    real = np.dtype(cost.type.dtype).type
    return sum((real(weight) * smoothed_cross_entropy(own, labels, smoothing) for weight, own in auxiliary), cost)


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
    """Return the sum of `values`, float (batch,) or (class, batch), divided by the batch size.

    The batch size is taken from the labels. `values.mean()` derives it from the shapes of both indices instead, which
    adds run-time broadcasting assertions to the graph.
    """
    return values.sum() / labels.shape[0].astype(values.dtype)
