"""Update rules: from gradients to (variable, new value) pairs.

A rule takes parameters (alexnet.layers.Parameter), their gradients and the learning rate (a symbolic scalar),
which each parameter scales by its lr_mult, and weight decay by its decay_mult.  It returns the pairs and the
velocities: shared variables that start at zero and belong in the checkpoint.
"""

import numpy as np
import pytensor

f32 = np.float32                # constants of float32 keep the graph, and so the bytes moved, float32


def sgd(parameters, gradients, learning_rate, weight_decay=5e-4):
    """Plain gradient descent with weight decay: w <- w - learning_rate * (g + weight_decay * w)."""
    pairs = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        pairs.append((w, w - scaled(learning_rate, parameter) * decayed(g, parameter, weight_decay)))
    return pairs, []


def momentum_sgd(parameters, gradients, learning_rate, momentum=0.9, weight_decay=5e-4):
    """Momentum with weight decay.

        v <- momentum * v - learning_rate * (g + weight_decay * w)
        w <- w + v

    Source: Krizhevsky et al. 2012, section 5.
    """
    pairs, velocities = [], []
    for parameter, g in zip(parameters, gradients, strict=True):
        w, v = parameter.variable, velocity_of(parameter)
        new_v = f32(momentum) * v - scaled(learning_rate, parameter) * decayed(g, parameter, weight_decay)
        pairs += [(v, new_v), (w, w + new_v)]
        velocities.append(v)
    return pairs, velocities


def nesterov(parameters, gradients, learning_rate, momentum=0.9, weight_decay=5e-4):
    """Nesterov momentum in the form that theano_alexnet has.

        v <- momentum**2 * v - (1 + momentum) * learning_rate * (g + weight_decay * w)
        w <- w + v

    Source: theano_alexnet, compile_models.
    """
    pairs, velocities = [], []
    for parameter, g in zip(parameters, gradients, strict=True):
        w, v = parameter.variable, velocity_of(parameter)
        rate = f32(1 + momentum) * scaled(learning_rate, parameter)
        new_v = f32(momentum**2) * v - rate * decayed(g, parameter, weight_decay)
        pairs += [(v, new_v), (w, w + new_v)]
        velocities.append(v)
    return pairs, velocities


def scaled(learning_rate, parameter):
    return f32(parameter.lr_mult) * learning_rate


def decayed(g, parameter, weight_decay):
    """The gradient of the cost and of weight_decay / 2 * |w|**2."""
    rate = weight_decay * parameter.decay_mult
    return g + f32(rate) * parameter.variable if rate else g


def velocity_of(parameter):
    zeros = np.zeros(parameter.shape, dtype=pytensor.config.floatX)
    return pytensor.shared(zeros, name=f"{parameter.name}.velocity", shape=parameter.shape, borrow=True)
