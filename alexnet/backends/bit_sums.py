"""An Op that sums the bits of arrays, so that two copies of a state can be compared by a few numbers.

    s = sum of the elements' bits as 32-bit words, modulo 2**32

A flipped bit k changes the sum by 2**k, so a single one is always found. The order of the elements does not matter, and
so the sum does not depend on threads. The cpu backend computes the sums of what an update reads and writes in the loop
of the update, without another pass over memory: see alexnet.backends.cpu.kernels.summed_update.
"""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op

from alexnet.ops.base import Arrays, Storages


class BitSums(Op):
    """(*arrays) -> uint32 (n,): the sum of the bits of each array."""

    __props__ = ()

    def make_node(self, *arrays: Variable) -> Apply:
        return Apply(self, list(arrays), [pt.tensor(dtype="uint32", shape=(len(arrays),))])

    def perform(self, node: Apply, inputs: Arrays, outputs: Storages) -> None:
        outputs[0][0] = np.array([bit_sum(array) for array in inputs], np.uint32)


def bit_sum(array: np.ndarray) -> int:
    """Return the sum of the bits of an array of 4-byte or 8-byte numbers as 32-bit words, modulo 2**32."""
    return int(np.ascontiguousarray(array).reshape(-1).view(np.uint32).sum(dtype=np.uint32))
