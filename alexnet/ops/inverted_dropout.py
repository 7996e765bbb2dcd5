"""Inverted dropout. The mask is a pure function of (seed, stream, step, element), so it is the same on every backend.

Source: Krizhevsky et al. 2012, section 4.2. The factor is applied in training, not in testing:
y = x * mask / (1 - rate).
"""

from collections.abc import Sequence

import numpy as np
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import TensorLike

from alexnet.ops.base import Inputs, Shape, ShapedOp, float_tensor, integer_tensor, whole_number


class InvertedDropout(ShapedOp):
    """Compute x / (1 - rate) for elements that the mask keeps, else 0. The Op is linear in x and self-adjoint.

    The inputs are x (float of any shape) and the integer scalars seed and step. An element is kept if its random
    32-bit number is at least rate * 2**32.

    Args:
        rate: probability of dropping an element, at least 0 and below 1.
        stream: integer, at least 0; layers of a network use different streams, so their masks differ.
    """

    __props__ = ("rate", "stream")

    def __init__(self, rate: float = 0.5, stream: int = 0) -> None:
        self.rate = float(rate)
        self.stream = whole_number("dropout stream", stream, least=0)
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout rate must be at least 0 and below 1, got {rate}")

    @property
    def threshold(self) -> int:
        """The smallest random number for which an element is kept."""
        return min(round(self.rate * 2**32), 2**32 - 1)

    def make_node(self, x: TensorLike, seed: TensorLike, step: TensorLike) -> Apply:
        x = float_tensor(self, "x", x, ndim=None)
        seed = integer_tensor(self, "seed", seed, "int64", 0)
        step = integer_tensor(self, "step", step, "int64", 0)
        return self.apply([x, seed, step], [x.type.dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        return [input_shapes[0]]

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        x, seed, step = inputs
        keep = random_words(x.size, *keys(int(seed), self.stream, int(step))).reshape(x.shape) >= self.threshold
        return (np.where(keep, x * x.dtype.type(1 / (1 - self.rate)), x.dtype.type(0)),)

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True], [False], [False]]

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        return [self(cotangents[0], *inputs[1:]), DisconnectedType()(), DisconnectedType()()]


def random_words(count: int, key: int, second_key: int) -> np.ndarray:
    """Return uint32 (count,); element i is mix(mix(i ^ key) + second_key)."""
    index = np.arange(count, dtype=np.uint64).astype(np.uint32)
    return mix(mix(index ^ np.uint32(key)) + np.uint32(second_key))


def keys(seed: int, stream: int, step: int) -> tuple[int, int]:
    """Return two uint32 keys that depend on all 64 bits of each of the three numbers."""
    key = np.zeros(1, np.uint32)
    for number in (seed, stream, step):
        for word in (number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF):
            key = mix((key + np.uint32(0x9E3779B9)) ^ np.uint32(word))
    return int(key[0]), int(mix(key + np.uint32(0x9E3779B9))[0])


def mix(words: np.ndarray) -> np.ndarray:
    """Apply a bijection of uint32 in which each input bit flips each output bit with probability 1/2.

    Source: C. Wellons, "Prospecting for hash functions" (2018), function lowbias32.
    """
    words = words ^ words >> np.uint32(16)
    words = words * np.uint32(0x7FEB352D)
    words = words ^ words >> np.uint32(15)
    words = words * np.uint32(0x846CA68B)
    return words ^ words >> np.uint32(16)
