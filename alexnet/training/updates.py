"""Update rules, from gradients to (variable, new value) pairs, and the moving average of the weights.

An update rule is a function that is registered under its value of the setting `update`, with the Section of its
constants. The keyword argument `epsilon` of the rule adagrad is the setting adagrad_epsilon, or epsilon.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.variable import TensorVariable

from alexnet.config import Config, ConfigError, Registry, Section
from alexnet.nn import Parameter
from alexnet.training.update_settings import (
    AdadeltaSettings,
    AdagradSettings,
    ClipSettings,
    MomentumSettings,
    UpdateSettings,
)

CLIP_EPSILON = 1e-6                              # in units of the gradient
AVERAGE = "average"                              # conv1.W.average is the average of conv1.W

Parameters: TypeAlias = Sequence[Parameter]
Gradients: TypeAlias = Sequence[TensorVariable]
Pairs: TypeAlias = list[tuple[SharedVariable, TensorVariable]]             # (variable, new value)
Updates: TypeAlias = tuple[Pairs, list[SharedVariable]]                    # and the state of the rule


class UpdateRule(Protocol):
    """From parameters and their gradients to their updates."""

    def __call__(self, parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable) -> Updates:
        """Return the pairs (variable, new value), and the state of the rule.

        Each parameter scales the learning rate by its lr_mult and the weight decay by its decay_mult. The state,
        velocities or accumulators, are shared variables that start at zero and belong in the checkpoint.

        Args:
            learning_rate: a scalar.
        """


class RegisteredRule(NamedTuple):
    """An update rule with its properties.

    name      value of the setting `update`
    function  an UpdateRule with further keyword arguments: weight_decay, and the constants in `settings`
    settings  the Section of the constants, or None
    linear    whether the update is linear in the gradients: the mean of the workers' updates is then that of the mean
              gradient
    """

    name: str
    function: Callable[..., Updates]
    settings: type[Section] | None
    linear: bool


UPDATE_RULES: Registry[RegisteredRule] = Registry("update", "update rule", "alexnet.training")


def update_rule(name: str, settings: type[Section] | None = None, linear: bool = True) -> Callable[[Any], Any]:
    """Return a decorator that registers an update rule; see RegisteredRule for the arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        UPDATE_RULES.register(name)(RegisteredRule(name, function, settings, linear))
        return function

    return register


def find_update_rule(config: Config) -> RegisteredRule:
    """Return the update rule of the settings.

    Raises:
        ConfigError: there is no such rule.
    """
    name = config.section(UpdateSettings).rule
    found: Any = UPDATE_RULES.find(name)
    if isinstance(found, RegisteredRule):
        return found
    for rule in UPDATE_RULES.values():
        if found is rule.function:
            return rule
    raise ConfigError(f"update must name a function decorated with alexnet.training.updates.update_rule, got {name}")


def clip_by_global_norm(gradients: Sequence[TensorVariable], clip_norm: float) -> list[TensorVariable]:
    """Return the gradients, scaled so that the norm of all of them together is at most clip_norm.

        norm = sqrt(sum of g**2 over all trainable parameters),  g <- g * min(1, clip_norm / (norm + 1e-6))

    The weight decay of the update rule is added after it, as in PyTorch.

    Source: Pascanu et al. 2013, algorithm 1; clip_grad_norm_ of PyTorch for the 1e-6.
    """
    real = np.dtype(gradients[0].type.dtype).type        # a Python float might widen the graph to float64
    norm = pt.sqrt(reduce(add, [pt.sqr(g).sum() for g in gradients]))
    factor = pt.minimum(real(1), real(clip_norm) / (norm + real(CLIP_EPSILON)))
    return [g * factor for g in gradients]


def bind_update_rule(config: Config) -> UpdateRule:
    """Return the update rule of the settings as a function, with its constants bound.

    With clip_norm the rule receives the clipped gradients.
    """
    rule = find_update_rule(config)
    settings = config.section(UpdateSettings)
    constants = config.section(rule.settings).model_dump() if rule.settings else {}
    arguments = {name.removeprefix(f"{rule.name}_"): value for name, value in constants.items()}
    bound = partial(rule.function, weight_decay=settings.weight_decay, **arguments)
    clip_norm = config.section(ClipSettings).clip_norm
    return bound if clip_norm is None else partial(update_clipped, bound, clip_norm)


def update_clipped(
    rule: UpdateRule, clip_norm: float,
    parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable,
) -> Updates:
    """Apply an update rule to the gradients after clip_by_global_norm()."""
    return rule(parameters, clip_by_global_norm(gradients, clip_norm), learning_rate)


@update_rule("sgd")
def sgd(
    parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable, weight_decay: float = 5e-4,
) -> Updates:
    """Gradient descent with weight decay: w <- w - learning_rate * (g + weight_decay * w)."""
    pairs: Pairs = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        pairs.append((w, w - scaled(learning_rate, parameter) * decayed(g, parameter, weight_decay)))
    return pairs, []


@update_rule("momentum", MomentumSettings)
def momentum_sgd(
    parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable,
    momentum: float = 0.9, weight_decay: float = 5e-4,
) -> Updates:
    """SGD with momentum and weight decay.

        v <- momentum * v - learning_rate * (g + weight_decay * w)
        w <- w + v

    Source: Krizhevsky et al. 2012, section 5.
    """
    pairs: Pairs = []
    velocities = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        real = parameter.real
        v = zeros_like(parameter, "velocity")
        new_v = real(momentum) * v - scaled(learning_rate, parameter) * decayed(g, parameter, weight_decay)
        pairs += [(v, new_v), (w, w + new_v)]
        velocities.append(v)
    return pairs, velocities


@update_rule("nesterov", MomentumSettings)
def nesterov(
    parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable,
    momentum: float = 0.9, weight_decay: float = 5e-4,
) -> Updates:
    """Nesterov momentum in the form used by theano_alexnet.

        v <- momentum**2 * v - (1 + momentum) * learning_rate * (g + weight_decay * w)
        w <- w + v

    Source: theano_alexnet, compile_models.
    """
    pairs: Pairs = []
    velocities = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        real = parameter.real
        v = zeros_like(parameter, "velocity")
        rate = real(1 + momentum) * scaled(learning_rate, parameter)
        new_v = real(momentum**2) * v - rate * decayed(g, parameter, weight_decay)
        pairs += [(v, new_v), (w, w + new_v)]
        velocities.append(v)
    return pairs, velocities


@update_rule("adagrad", AdagradSettings, linear=False)
def adagrad(
    parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable,
    epsilon: float = 1e-10, weight_decay: float = 5e-4,
) -> Updates:
    """Adagrad: a step size for each weight that decreases with the sum of its squared gradients.

        g <- g + weight_decay * w
        G <- G + g**2
        w <- w - learning_rate * g / (sqrt(G) + epsilon)

    Source: Duchi et al. 2011, equation 1, with the diagonal of G and delta (here epsilon) added to its square root.
    """
    pairs: Pairs = []
    sums = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        real = parameter.real
        squares = zeros_like(parameter, "squares")
        g = decayed(g, parameter, weight_decay)
        new_squares = squares + pt.sqr(g)
        step = scaled(learning_rate, parameter) * g / (pt.sqrt(new_squares) + real(epsilon))
        pairs += [(squares, new_squares), (w, w - step)]
        sums.append(squares)
    return pairs, sums


@update_rule("adadelta", AdadeltaSettings, linear=False)
def adadelta(
    parameters: Parameters, gradients: Gradients, learning_rate: TensorVariable,
    rho: float = 0.95, epsilon: float = 1e-6, weight_decay: float = 5e-4,
) -> Updates:
    """Adadelta: step sizes from running averages of squared steps and gradients, in the units of the weights.

        g      <- g + weight_decay * w
        E[g^2] <- rho * E[g^2] + (1 - rho) * g**2
        d       = sqrt(E[d^2] + epsilon) / sqrt(E[g^2] + epsilon) * g
        E[d^2] <- rho * E[d^2] + (1 - rho) * d**2
        w      <- w - learning_rate * d

    The paper has no learning rate, which corresponds to 1. Source: Zeiler 2012, algorithm 1.
    """
    pairs: Pairs = []
    of_gradients = []
    of_steps = []
    for parameter, g in zip(parameters, gradients, strict=True):
        w = parameter.variable
        real = parameter.real
        squared_gradient = zeros_like(parameter, "squared_gradient")
        squared_step = zeros_like(parameter, "squared_step")
        g = decayed(g, parameter, weight_decay)
        new_squared_gradient = real(rho) * squared_gradient + real(1 - rho) * pt.sqr(g)
        d = pt.sqrt(squared_step + real(epsilon)) / pt.sqrt(new_squared_gradient + real(epsilon)) * g
        new_squared_step = real(rho) * squared_step + real(1 - rho) * pt.sqr(d)
        pairs += [(squared_gradient, new_squared_gradient), (squared_step, new_squared_step)]
        pairs += [(w, w - scaled(learning_rate, parameter) * d)]
        of_gradients.append(squared_gradient)
        of_steps.append(squared_step)
    return pairs, of_gradients + of_steps


def update_averages(
    averages: Sequence[SharedVariable], parameters: Parameters, new_values: Mapping[SharedVariable, TensorVariable],
    steps: Variable, decay: float,
) -> Pairs:
    """Return the pairs (average, new value) of a step, for the exponential moving average of the weights.

    Validation, evaluation and exports use it instead of the weights. With decay d, weights w_t after step t, and the
    average a_t:

        a_t <- a_(t-1) + (1 - d) / (1 - d**t) * (w_t - a_(t-1))

    This is the mean of w_1 ... w_t with the factors d**(t-1) ... d, 1. The divisor 1 - d**t corrects the bias of an
    average that starts at zero, so no initial value enters.

    Args:
        new_values: of the parameters that the same function updates; the others have their values already.
        steps: number of steps including this one, an integer scalar.
        decay: greater than 0 and less than 1.

    Source: Polyak and Juditsky 1992; Szegedy et al. 2016, section 8, for the moving average; Kingma and Ba 2015,
    section 3, for the correction.
    """
    pairs: Pairs = []
    for average, parameter in zip(averages, parameters, strict=True):
        real = parameter.real
        # 1 - decay**steps without cancellation
        divisor = -pt.expm1(real(math.log(decay)) * steps.astype(parameter.variable.type.dtype))
        w = new_values.get(parameter.variable, parameter.variable)
        pairs.append((average, average + real(1 - decay) / divisor * (w - average)))
    return pairs


def scaled(learning_rate: TensorVariable, parameter: Parameter) -> TensorVariable:
    """Return the learning rate of a parameter."""
    return parameter.real(parameter.lr_mult) * learning_rate


def decayed(g: TensorVariable, parameter: Parameter, weight_decay: float) -> TensorVariable:
    """Return the gradient of the cost plus weight_decay / 2 * |w|**2."""
    rate = weight_decay * parameter.decay_mult
    return g + parameter.real(rate) * parameter.variable if rate else g


def zeros_like(parameter: Parameter, what: str) -> SharedVariable:
    """Return a shared variable of zeros with the parameter's shape, named after the parameter."""
    zeros = np.zeros(parameter.shape, dtype=parameter.variable.type.dtype)
    return pytensor.shared(zeros, name=f"{parameter.name}.{what}", shape=parameter.shape, borrow=True)
