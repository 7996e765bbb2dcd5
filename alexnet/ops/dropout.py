"""Inverted dropout whose mask is a pure function of (seed, stream, step, element), so that every engine draws the same.

Source: Krizhevsky et al. 2012, section 4.2, with the factor moved from testing to training: y = x * mask / (1 - rate).
"""

import numpy as np
from pytensor.gradient import DisconnectedType

from alexnet.ops.base import ShapedOp, float_tensor, integer_tensor, whole_number


class Dropout(ShapedOp):
    """y = x / (1 - rate) where the mask keeps an element, else 0; linear in x and its own adjoint.

    x float of any shape; seed and step integer scalars.  stream, a whole number, tells layers apart.
    An element is kept if its random 32-bit number is at least rate * 2 ** 32.
    """

    __props__ = ("rate", "stream")

    def __init__(self, rate=0.5, stream=0):
        self.rate = float(rate)
        self.stream = whole_number("dropout stream", stream, least=0)
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout rate must be at least 0 and below 1, got {rate}")

    @property
    def threshold(self):
        """The least random number that keeps an element."""
        return min(round(self.rate * 2**32), 2**32 - 1)

    def make_node(self, x, seed, step):
        x = float_tensor(self, "x", x, ndim=None)
        counters = [integer_tensor(self, name, v, "int64", 0) for name, v in (("seed", seed), ("step", step))]
        return self.apply([x, *counters], [x.type.dtype])

    def shapes(self, inputs, input_shapes):
        return [input_shapes[0]]

    def perform(self, node, inputs, outputs):
        x, seed, step = inputs
        keep = random_words(x.size, *keys(int(seed), self.stream, int(step))).reshape(x.shape) >= self.threshold
        outputs[0][0] = np.where(keep, x * x.dtype.type(1 / (1 - self.rate)), x.dtype.type(0))

    def connection_pattern(self, node):
        return [[True], [False], [False]]

    def pullback(self, inputs, outputs, cotangents):
        return [self(cotangents[0], *inputs[1:]), DisconnectedType()(), DisconnectedType()()]


def random_words(count, key, second_key):
    """uint32 (count,): element i is mix(mix(i ^ key) + second_key)."""
    index = np.arange(count, dtype=np.uint64).astype(np.uint32)
    return mix(mix(index ^ np.uint32(key)) + np.uint32(second_key))


def keys(seed, stream, step):
    """Two uint32 keys, from all 64 bits of each of the three numbers."""
    key = np.zeros(1, np.uint32)
    for number in (seed, stream, step):
        for word in (number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF):
            key = mix((key + np.uint32(0x9E3779B9)) ^ np.uint32(word))
    return int(key[0]), int(mix(key + np.uint32(0x9E3779B9))[0])


def mix(words):
    """A bijection of uint32 in which each input bit flips each output bit half of the time.

    Source: C. Wellons, "Prospecting for hash functions" (2018), the one called lowbias32.
    """
    words = words ^ words >> np.uint32(16)
    words = words * np.uint32(0x7FEB352D)
    words = words ^ words >> np.uint32(15)
    words = words * np.uint32(0x846CA68B)
    return words ^ words >> np.uint32(16)
