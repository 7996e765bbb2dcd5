"""Update rules: from gradients to (variable, new value) pairs.

A rule takes parameters (alexnet.nn.layers.Parameter), their gradients and the learning rate (a symbolic scalar). Each
parameter scales the learning rate by its lr_mult and the weight decay by its decay_mult. The rule returns the pairs
and its own state, velocities or accumulators: shared variables that start at zero and belong in the checkpoint.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt


def sgd(parameters, gradients, learning_rate, weight_decay=5e-4):
    """Gradient descent with weight decay: w <- w - learning_rate * (g + weight_decay * w)."""
    pairs = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        pairs.append((w, w - scaled(learning_rate, parameter) * decayed(g, parameter, weight_decay)))
    return pairs, []


def momentum_sgd(parameters, gradients, learning_rate, momentum=0.9, weight_decay=5e-4):
    """SGD with momentum and weight decay.

        v <- momentum * v - learning_rate * (g + weight_decay * w)
        w <- w + v

    Source: Krizhevsky et al. 2012, section 5.
    """
    pairs, velocities = [], []
    for parameter, g in zip(parameters, gradients, strict=True):
        w, v = parameter.variable, kept(parameter, "velocity")
        new_v = constant(momentum) * v - scaled(learning_rate, parameter) * decayed(g, parameter, weight_decay)
        pairs += [(v, new_v), (w, w + new_v)]
        velocities.append(v)
    return pairs, velocities


def nesterov(parameters, gradients, learning_rate, momentum=0.9, weight_decay=5e-4):
    """Nesterov momentum in the form used by theano_alexnet.

        v <- momentum**2 * v - (1 + momentum) * learning_rate * (g + weight_decay * w)
        w <- w + v

    Source: theano_alexnet, compile_models.
    """
    pairs, velocities = [], []
    for parameter, g in zip(parameters, gradients, strict=True):
        w, v = parameter.variable, kept(parameter, "velocity")
        rate = constant(1 + momentum) * scaled(learning_rate, parameter)
        new_v = constant(momentum**2) * v - rate * decayed(g, parameter, weight_decay)
        pairs += [(v, new_v), (w, w + new_v)]
        velocities.append(v)
    return pairs, velocities


def adagrad(parameters, gradients, learning_rate, epsilon=1e-10, weight_decay=5e-4):
    """Adagrad: a step size for each weight that decreases with the sum of its squared gradients.

        g <- g + weight_decay * w
        G <- G + g**2
        w <- w - learning_rate * g / (sqrt(G) + epsilon)

    Source: Duchi et al. 2011, equation 1, with the diagonal of G and delta (here epsilon) added to its square root.
    """
    pairs, sums = [], []
    for parameter, g in zip(parameters, gradients, strict=True):
        w, squares = parameter.variable, kept(parameter, "squares")
        g = decayed(g, parameter, weight_decay)
        new_squares = squares + pt.sqr(g)
        step = scaled(learning_rate, parameter) * g / (pt.sqrt(new_squares) + constant(epsilon))
        pairs += [(squares, new_squares), (w, w - step)]
        sums.append(squares)
    return pairs, sums


def adadelta(parameters, gradients, learning_rate, rho=0.95, epsilon=1e-6, weight_decay=5e-4):
    """Adadelta: step sizes from running averages of squared steps and gradients, in the units of the weights.

        g      <- g + weight_decay * w
        E[g^2] <- rho * E[g^2] + (1 - rho) * g**2
        d       = sqrt(E[d^2] + epsilon) / sqrt(E[g^2] + epsilon) * g
        E[d^2] <- rho * E[d^2] + (1 - rho) * d**2
        w      <- w - learning_rate * d

    The paper has no learning rate, which corresponds to 1. Source: Zeiler 2012, algorithm 1.
    """
    pairs, of_gradients, of_steps = [], [], []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        squared_gradient, squared_step = kept(parameter, "squared_gradient"), kept(parameter, "squared_step")
        g = decayed(g, parameter, weight_decay)
        new_squared_gradient = constant(rho) * squared_gradient + constant(1 - rho) * pt.sqr(g)
        d = pt.sqrt(squared_step + constant(epsilon)) / pt.sqrt(new_squared_gradient + constant(epsilon)) * g
        new_squared_step = constant(rho) * squared_step + constant(1 - rho) * pt.sqr(d)
        pairs += [(squared_gradient, new_squared_gradient), (squared_step, new_squared_step)]
        pairs += [(w, w - scaled(learning_rate, parameter) * d)]
        of_gradients.append(squared_gradient)
        of_steps.append(squared_step)
    return pairs, of_gradients + of_steps


def scaled(learning_rate, parameter):
    return constant(parameter.lr_mult) * learning_rate


def decayed(g, parameter, weight_decay):
    """Return the gradient of the cost plus weight_decay / 2 * |w|**2."""
    rate = weight_decay * parameter.decay_mult
    return g + constant(rate) * parameter.variable if rate else g


def constant(value):
    """Return the number in floatX, the parameters' dtype. A float32 constant keeps the graph in float32."""
    return np.dtype(pytensor.config.floatX).type(value)


def kept(parameter, what):
    """Return a shared variable of zeros with the parameter's shape, named after the parameter."""
    zeros = np.zeros(parameter.shape, dtype=pytensor.config.floatX)
    return pytensor.shared(zeros, name=f"{parameter.name}.{what}", shape=parameter.shape, borrow=True)


def name_of(update, use_momentum, use_nesterov_momentum):
    """Return the name of the rule: `update`, or if it is auto, the rule that upstream's two switches select."""
    if update != "auto":
        return update
    return "nesterov" if use_nesterov_momentum else "momentum" if use_momentum else "sgd"
