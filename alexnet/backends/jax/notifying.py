"""A graph that contains a Notify, as two XLA computations.

The first computes what Notify reports, the second the rest. The second is started before the receiver of Notify waits
for results of the first, so they overlap. Values that both need stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pytensor.graph.basic import Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors

from alexnet.backends.notify import Notify, notify_nodes

if TYPE_CHECKING:
    from alexnet.backends.jax.linker import DeviceFunction


class NotifyingFunction:
    """A graph with one Notify as a function (inputs -> outputs).

    Args:
        fgraph: the graph.
        convert: makes a function of each of the two graphs.

    The first function returns the outputs that it computes on the way to Notify's inputs, the second all others. If the
    second reads the old value of an updated variable, it also returns the new one, because it may overwrite the old.
    """

    def __init__(self, fgraph: FunctionGraph, convert: Callable[[FunctionGraph], DeviceFunction]) -> None:
        (node,) = notify_nodes(fgraph)
        assert isinstance(node.op, Notify)
        self.notify = node.op.notify
        inputs = list(fgraph.inputs)
        outputs = clone_replace(list(fgraph.outputs), dict(zip(node.outputs, node.inputs, strict=True)))
        updates = fgraph.update_mapping or {}
        first = set(ancestors(node.inputs))
        read_late = set(ancestors([variable for variable in outputs if variable not in first], blockers=first))
        self.early = [
            n for n, variable in enumerate(outputs)
            if variable in first and not (n in updates and inputs[updates[n]] in read_late)
        ]
        self.late = [n for n in range(len(outputs)) if n not in self.early]
        late = [outputs[n] for n in self.late]
        passed = [v for v in ancestors(late, blockers=first) if v in first and v.owner is not None]
        self.n_notified, self.n_passed = len(node.inputs), len(passed)
        offset = self.n_notified + self.n_passed
        self.first = convert(subgraph(
            inputs, [*node.inputs, *passed, *(outputs[n] for n in self.early)],
            {offset + at: updates[n] for at, n in enumerate(self.early) if n in updates},
        ))
        received = [variable.type() for variable in passed]
        self.second = convert(subgraph(
            [*inputs, *received], clone_replace(late, dict(zip(passed, received, strict=True))),
            {at: updates[n] for at, n in enumerate(self.late) if n in updates},
        ))

    def __call__(self, *values: Any) -> list[Any]:
        results = self.first(*values)
        notified, results = results[: self.n_notified], results[self.n_notified :]
        rest = self.second(*values, *results[: self.n_passed])
        self.notify(notified)
        outputs = dict(zip([*self.early, *self.late], [*results[self.n_passed :], *rest], strict=True))
        return [outputs[n] for n in range(len(outputs))]

    def prepare(self, batch: int) -> None:
        """Compile with XLA now, with `batch` for each unknown length; later calls reuse the result."""
        self.first.prepare(batch)
        self.second.prepare(batch)


def subgraph(inputs: Sequence[Variable], outputs: Sequence[Variable], updates: dict[int, int]) -> FunctionGraph:
    """Return a graph of some outputs.

    Args:
        updates: position of a new value among the outputs -> position of the old value among the inputs.
    """
    fgraph = FunctionGraph(inputs, outputs, clone=False)
    fgraph.update_mapping = updates
    return fgraph
