"""Update rules: from gradients to (variable, new value) pairs.

An update rule is a function that is registered under its value of the setting `update`, with the Section of its
constants. The keyword argument `epsilon` of the rule adagrad is the setting adagrad_epsilon, or epsilon.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from alexnet.config import Config, ConfigError, Registry, Section
from alexnet.config.fields import Amount, Epsilon, NotNegative, Share, Text
from alexnet.nn import Parameter

CLIP_EPSILON = 1e-6                              # in units of the gradient

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


class UpdateSettings(Section):
    """Which update rule trains the network: `update`, or if it is auto, the rule of upstream's two switches."""

    update: Text
    use_momentum: bool
    use_nesterov_momentum: bool
    weight_decay: NotNegative

    def check(self) -> None:
        if self.use_nesterov_momentum and not self.use_momentum:
            raise ValueError("use_nesterov_momentum is true but use_momentum is false: set both or neither")
        switched = "nesterov" if self.use_nesterov_momentum else "auto" if self.use_momentum else "sgd"
        if "auto" not in (self.update, switched) and self.update != switched:
            switch = "use_momentum=false" if switched == "sgd" else "use_nesterov_momentum=true"
            raise ValueError(f"update is {self.update}, but {switch} means {switched}: set one of the two")

    @property
    def rule(self) -> str:
        """The name of the update rule."""
        if self.update != "auto":
            return self.update
        return "nesterov" if self.use_nesterov_momentum else "momentum" if self.use_momentum else "sgd"


class ClipSettings(Section):
    """The largest norm of a gradient; None: any."""

    clip_norm: Amount | None


class MomentumSettings(Section):
    """The constant of the rules momentum and nesterov."""

    momentum: Share


class AdagradSettings(Section):
    """The constant of Adagrad."""

    adagrad_epsilon: Epsilon


class AdadeltaSettings(Section):
    """The constants of Adadelta."""

    adadelta_rho: Share
    adadelta_epsilon: Epsilon


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


def nonlinear_setting(config: Config) -> str | None:
    """Return the setting because of which the update is not linear in the gradients, as update=adagrad, or None."""
    clip_norm = config.section(ClipSettings).clip_norm
    if clip_norm is not None:
        return f"clip_norm={clip_norm:g}"
    rule = find_update_rule(config)
    return None if rule.linear else f"update={config.section(UpdateSettings).rule}"


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
