"""An Op that calls a function as soon as its inputs are computed, while the rest of the graph still runs.

A Network uses it to report the gradients of the last layers, which workers can exchange during the rest of the backward
pass. Each backend computes the ancestors of the Op first: the cpu backend by the order of its nodes (`notify_early`),
the jax backend by two XLA computations.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op

from alexnet.ops.base import Arrays, Storages

Receiver = Callable[[Sequence[Any]], None]


class Notify(Op):
    """(*inputs) -> the same values; calls `receive` with them, arrays of the backend, unless it is None."""

    def __init__(self, n_inputs: int) -> None:
        self.receive: Receiver | None = None
        self.view_map = {n: [n] for n in range(n_inputs)}

    def make_node(self, *inputs: Variable) -> Apply:
        return Apply(self, inputs, [variable.type() for variable in inputs])

    def perform(self, node: Apply, inputs: Arrays, outputs: Storages) -> None:
        for storage, value in zip(outputs, inputs, strict=True):
            storage[0] = value
        self.notify(inputs)

    def notify(self, values: Sequence[Any]) -> None:
        """Call the receiver, if there is one."""
        if self.receive is not None:
            self.receive(values)


def notify_nodes(fgraph: FunctionGraph) -> list[Apply]:
    """Return the nodes of Notify in a graph."""
    return [node for node in fgraph.apply_nodes if isinstance(node.op, Notify)]


def notify_early(fgraph: FunctionGraph) -> list[Apply]:
    """Return the nodes in an order of execution in which those that Notify does not need come last."""
    order: list[Apply] = fgraph.toposort()
    pending, needed = notify_nodes(fgraph), set()
    if not pending:
        return order
    before = fgraph.orderings()                  # of nodes that work in place: the nodes that read the old values
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [variable.owner for variable in node.inputs if variable.owner is not None]
            pending += before.get(node, ())
    return [node for node in order if node in needed] + [node for node in order if node not in needed]
