"""Updates that also sum the bits of the values that they read and write: BitSums without another pass over memory.

The update of AlexNet's weights and velocities writes 488 MB. Another pass over them would take 50 ms at 10 GB/s. The
values are in registers during the update, which waits for memory, so an integer addition for each costs about 1 % of
the update, 0.1 to 0.3 % of a step with 16 images.
"""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.tensor.elemwise import Elemwise

from alexnet.backends.bit_sums import BitSums
from alexnet.backends.cpu.kernels import elemwise, fused_update
from alexnet.backends.cpu.kernels.elemwise import SumPick
from alexnet.backends.cpu.kernels.fused_update import FilterGradientUpdate
from alexnet.ops.base import Arrays, Storages
from alexnet.ops.registry import Run, cpu_kernel


class SummedUpdate(Op):
    """An update in place with sums of the bits of its values: inputs of `update` -> its outputs, uint32 (sums,).

    update  Elemwise or FilterGradientUpdate, all outputs of which are in place
    sums    a SumPick for each element of the last output
    """

    __props__ = ("update", "sums")

    def __init__(self, update: Op, sums: tuple[SumPick, ...]) -> None:
        self.update = update
        self.sums = sums
        self.destroy_map = dict(update.destroy_map)

    def make_node(self, *inputs: Variable) -> Apply:
        outputs = [output.type() for output in self.update.make_node(*inputs).outputs]
        return Apply(self, list(inputs), [*outputs, pt.tensor(dtype="uint32", shape=(len(self.sums),))])

    def perform(self, node: Apply, inputs: Arrays, outputs: Storages) -> None:
        raise NotImplementedError(f"{self} is a kernel of the cpu backend only")


class TakeSums(Op):
    """(*arrays of sums) -> uint32 (n,).

    picks  for each output (position of an input, index in it)
    """

    __props__ = ("picks",)

    def __init__(self, picks: tuple[tuple[int, int], ...]) -> None:
        self.picks = picks

    def make_node(self, *sums: Variable) -> Apply:
        return Apply(self, list(sums), [pt.tensor(dtype="uint32", shape=(len(self.picks),))])

    def perform(self, node: Apply, inputs: Arrays, outputs: Storages) -> None:
        outputs[0][0] = np.array([inputs[position][index] for position, index in self.picks], np.uint32)


def fuse(fgraph: FunctionGraph) -> None:
    """Compute the inputs of each BitSums in the update that reads or writes them, where there is one."""
    wanted: dict[Apply, list[SumPick]] = {}
    for node in sums_of(fgraph):
        for variable in node.inputs:
            update, pick = updating(fgraph, variable)
            if update is not None and is_summable(update):
                wanted.setdefault(update, []).append(pick)
    for update, sums in wanted.items():
        summed = SummedUpdate(update.op, tuple(dict.fromkeys(sums))).make_node(*update.inputs)
        replaced = zip(update.outputs, summed.outputs[:-1], strict=True)
        fgraph.replace_all(list(replaced), reason="summed update")
    for node in sums_of(fgraph):
        take_sums(fgraph, node)


def sums_of(fgraph: FunctionGraph) -> list[Apply]:
    """Return the nodes of BitSums."""
    return [node for node in fgraph.toposort() if isinstance(node.op, BitSums)]


def take_sums(fgraph: FunctionGraph, node: Apply) -> None:
    """Replace a BitSums by the sums of its inputs from their updates, and a BitSums of the remaining inputs."""
    found = [updating(fgraph, variable) for variable in node.inputs]
    summed = [update is not None and isinstance(update.op, SummedUpdate) for update, _ in found]
    rest = [variable for variable, done in zip(node.inputs, summed, strict=True) if not done]
    if len(rest) == len(node.inputs):
        return
    sources = [BitSums()(*rest)] if rest else []
    picks = []
    for variable, done, (update, pick) in zip(node.inputs, summed, found, strict=True):
        if not done or update is None:
            picks.append((0, rest.index(variable)))
            continue
        if update.outputs[-1] not in sources:
            sources.append(update.outputs[-1])
        picks.append((sources.index(update.outputs[-1]), update.op.sums.index(pick)))
    fgraph.replace_all([(node.outputs[0], TakeSums(tuple(picks))(*sources))], reason="summed update")


def updating(fgraph: FunctionGraph, variable: Variable) -> tuple[Apply | None, SumPick]:
    """Return the node that updates a variable, or that has written it in place, and the pick of its sum."""
    for client, position in fgraph.clients[variable]:
        for output, destroyed in client.op.destroy_map.items():
            if destroyed == [position]:
                return client, SumPick(output, written=False)
    owner = variable.owner
    if owner is None or not owner.op.destroy_map:
        return None, SumPick(0, written=True)
    return owner, SumPick(owner.outputs.index(variable), written=True)


def is_summable(node: Apply) -> bool:
    """Return whether a SummedUpdate can replace an update."""
    if isinstance(node.op, FilterGradientUpdate):
        return True
    return isinstance(node.op, Elemwise) and elemwise.sums_in_loop(node)


@cpu_kernel(SummedUpdate)
def summed_update(op: SummedUpdate, node: Apply) -> Run:
    update = op.update.make_node(*node.inputs)
    if isinstance(op.update, Elemwise):
        return elemwise.loop_of(update, op.sums)
    return fused_update.update_of(op.update, update, op.sums)
