"""LARS: a learning rate for each layer, in proportion to the norm of its weights divided by that of its gradient.

Found by its value of the setting `update`, as every module of this package with an update rule.
"""

import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from alexnet.config import Section
from alexnet.config.fields import Amount, Share
from alexnet.nn import Parameter
from alexnet.training.updates import Gradients, Pairs, Parameters, Updates, decayed, scaled, update_rule, zeros_like


class LarsSettings(Section):
    """The constants of LARS: its trust coefficient, and the momentum that it shares with other rules."""

    lars_trust: Amount
    momentum: Share


@update_rule("lars", LarsSettings, linear=False)
def lars(
    parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable,
    trust: float = 0.001, momentum: float = 0.9, weight_decay: float = 5e-4,
) -> Updates:
    """SGD with momentum and a local learning rate for the weights of each layer.

        local  = trust * |w| / (|g| + weight_decay * |w|),  1 if |w| or |g| is 0
        v <- momentum * v - learning_rate * local * (g + weight_decay * w)
        w <- w + v

    Parameters without weight decay, which are biases and those of normalisation, have local = 1.

    Source: You et al. 2017, algorithm 1 and equation 6. The exceptions are those of the reference implementation of
    MLPerf Training, ResNet-50.
    """
    pairs: Pairs = []
    velocities = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        v = zeros_like(parameter, "velocity")
        step = scaled(learning_rate, parameter) * decayed(g, parameter, weight_decay)
        if parameter.decay_mult:
            step *= local_rate(parameter, g, trust, weight_decay)
        new_v = parameter.real(momentum) * v - step
        pairs += [(v, new_v), (w, w + new_v)]
        velocities.append(v)
    return pairs, velocities


def local_rate(parameter: Parameter, g: TensorVariable, trust: float, weight_decay: float) -> TensorVariable:
    """Return the factor of the learning rate of a parameter, a scalar."""
    real = parameter.real
    weight_norm = norm(parameter.variable)
    gradient_norm = norm(g)
    rate = real(trust) * weight_norm / (gradient_norm + real(weight_decay * parameter.decay_mult) * weight_norm)
    return pt.switch(pt.gt(weight_norm, real(0)) & pt.gt(gradient_norm, real(0)), rate, real(1))


def norm(array: TensorVariable) -> TensorVariable:
    """Return the Euclidean norm of all values."""
    return pt.sqrt(pt.sqr(array).sum())
