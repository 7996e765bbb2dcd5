"""Groups of shared variables that workers average together, each in one flat buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from multigpu.exchange import ExchangeContext, Strategy, strategy_of

if TYPE_CHECKING:
    from alexnet.training.network import Network, SharedVariable

BEFORE_UPDATE = ("gradients", "factors")         # values of exchange_what


def groups_of(what: str, network: Network, statistics: bool = True) -> list[list[SharedVariable]]:
    """Return the variables that are averaged together: first those of each exchange, then the rest of the state.

    Args:
        statistics: average the running statistics of batch normalisation, too.
    """
    if what in BEFORE_UPDATE:
        early, late = ([network.gradients[n] for n in group] for group in network.gradient_groups)
        return [early, late + (network.running_statistics if statistics else [])]
    weights, velocities = weights_and_velocities(network)
    if not statistics:
        local = set(network.running_statistics)
        weights = [variable for variable in weights if variable not in local]
    averages = network.averages
    return [weights, [*velocities, *averages]] if what == "weights" else [weights + velocities, averages]


def weights_and_velocities(network: Network) -> tuple[list[SharedVariable], list[SharedVariable]]:
    """Return the shared variables that training changes: the weights, and the state of the update rule.

    The running statistics of batch normalisation are among the weights.
    """
    both = network.parameters_and_velocities
    n_weights = len(network.weights)
    return both[:n_weights], both[n_weights:]


def shapes_of(variables: list[SharedVariable]) -> list[tuple[int, ...]]:
    """Return the shape of each variable's value."""
    return [np.shape(variable.get_value(borrow=True)) for variable in variables]


class ParameterGroup(NamedTuple):
    """Shared variables that are averaged together, and the Strategy whose flat buffer holds them."""

    variables: list[SharedVariable]
    strategy: Strategy

    def pack(self) -> None:
        """Copy the variables to the flat buffer."""
        self.strategy.flat.pack(self.variables)
        self.strategy.device.synchronise()

    def average(self, step: int) -> None:
        """Average the flat buffers of all workers, and copy the result to the variables."""
        self.strategy.average(step)
        self.unpack()

    def unpack(self) -> None:
        """Set the variables to the values in the flat buffer."""
        self.strategy.flat.unpack(self.variables)


def connect_strategy(shapes: list[tuple[int, ...]], context: ExchangeContext) -> Strategy:
    """Open the strategy of the settings for arrays of these shapes. Collective."""
    return strategy_of(context.config, context.comm).connect(context._replace(shapes=shapes))


def connect_groups(groups: list[list[SharedVariable]], context: ExchangeContext) -> list[ParameterGroup]:
    """Open a strategy for each group of variables that is not empty. Collective."""
    return [
        ParameterGroup(variables, connect_strategy(shapes_of(variables), context)) for variables in groups if variables
    ]
