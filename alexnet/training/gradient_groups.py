"""Which gradients workers exchange during the backward pass, and which ones after it.

The gradients of the last layers are ready first, and in AlexNet they hold 96 % of the bytes. Let C be the time of the
whole exchange and T that of the step. If the first group has a share q of the bytes and is ready when a share r of the
computation remains, then max(q C - r T, 0) + (1 - q) C of the exchange remains visible. The group with the least is
chosen, under the assumption that an exchange of all gradients takes as long as the step. Factors take less, so that
more layers are in the first group.

The computation is counted in multiplications, which take most of the time: see benchmarks/RESULTS.md, "Overlap".
"""

import math
from collections.abc import Iterable, Sequence

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import ancestors
from pytensor.tensor.math import Dot

from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient


def first_group(
    outputs: Sequence[Variable], gradients: Sequence[Variable], sizes: Sequence[float], duration: float = 1.0
) -> list[int]:
    """Return the positions, in ascending order, of the gradients that are exchanged during the backward pass.

    Args:
        outputs: what is computed before any gradient: cost and error.
        gradients: of all parameters.
        sizes: of what is exchanged of each gradient, in any unit.
        duration: of the whole exchange, in steps: C / T.
    """
    needed = [nodes_of([*outputs, gradient]) for gradient in gradients]
    costs = {node: multiplications(node) for nodes in needed for node in nodes}
    total, ready = sum(costs.values()), nodes_of(outputs)
    best, chosen, group = math.inf, list[int](), list[int]()
    for position in sorted(range(len(gradients)), key=lambda n: sum(costs[node] for node in needed[n])):
        group.append(position)
        ready |= needed[position]
        q = sum(sizes[n] for n in group) / sum(sizes)
        r = 1 - sum(costs[node] for node in ready) / max(total, 1)
        visible = max(q * duration - r, 0) + (1 - q) * duration
        if visible < best:
            best, chosen = visible, sorted(group)
    return chosen


def nodes_of(variables: Iterable[Variable]) -> set[Apply]:
    """Return the nodes that compute these variables."""
    return {variable.owner for variable in ancestors(variables) if variable.owner is not None}


def multiplications(node: Apply) -> int:
    """Return the number of multiplications of a convolution or matrix product for one image; 0 for other nodes."""
    if isinstance(node.op, Convolution):
        return filter_products(node.inputs[1], node.outputs[0])
    if isinstance(node.op, ConvolutionInputGradient):
        return filter_products(node.inputs[0], node.inputs[1])
    if isinstance(node.op, ConvolutionFilterGradient):
        return filter_products(node.outputs[0], node.inputs[1])
    if isinstance(getattr(node.op, "core_op", node.op), Dot):        # of the operator @, too
        return math.prod(length or 1 for length in (*node.inputs[0].type.shape, *node.inputs[1].type.shape[1:]))
    return 0


def filter_products(filters: Variable, outputs: Variable) -> int:
    """Return the number of filter values times the number of pixels that they are applied to."""
    return math.prod(length or 1 for length in (*filters.type.shape, *outputs.type.shape[1:3]))
