"""What is minimised and what is counted: cross entropy and top-k error.

logits are (class, batch), labels int (batch,).
"""

import pytensor.tensor as pt


def cross_entropy(logits, labels):
    """Mean over the batch of -log softmax(logits)[label], in nats; ln(classes) for equal logits."""
    log_probability = pt.special.log_softmax(logits, axis=0)
    return -log_probability[labels, pt.arange(labels.shape[0])].mean()


def training_cost(logits, auxiliary, labels):
    """What training minimises: the cross entropy, and that of each auxiliary classifier (weight, logits), weighted.

    Source: Szegedy et al. 2014, section 5.
    """
    return sum((weight * cross_entropy(own, labels) for weight, own in auxiliary), cross_entropy(logits, labels))


def top_k_error(logits, labels, k):
    """Share of the batch whose label is not among the k largest logits, between 0 and 1.

    Of equal logits the one of the lower class counts as larger, as argmax has it; a NaN counts as larger
    than the label's, so a network that yields NaN is always wrong.
    """
    own = logits[labels, pt.arange(labels.shape[0])]
    lower_class = pt.lt(pt.arange(logits.shape[0]).dimshuffle(0, "x"), labels)
    ahead = pt.invert(pt.le(logits, own)) | (pt.eq(logits, own) & lower_class)
    return pt.ge(ahead.sum(axis=0), k).mean(dtype="float32")
