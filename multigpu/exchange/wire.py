"""How numbers travel between ranks: as they are, or as float16; and the room for them, with a Proof before them.

    encode(room, values, part)               what is sent of the values, float32: themselves, or float16 in the room
    sum(terms, total)                        float32 sum of what was sent, in this order: `total`
    result(room, own, total, divisor, part)  what is sent of total / divisor; `own` becomes what all others get
    landing(room, values)                    where to receive what decode() will put into `values`
    decode(values, landed)                   what was received, as float32

part is the slice of the whole array that a piece is.  overflow is what float16 could not hold since it was set to None.
"""

import numpy as np

from multigpu.exchange.half import LARGEST, conversions
from multigpu.exchange.proof import BYTES, Overflowed


class Place:
    """Room for a piece of `n` numbers, and a Proof before it."""

    def __init__(self, n, dtype):
        self.bytes, self._dtype = np.zeros(BYTES + n * dtype().itemsize, np.uint8), dtype

    def values(self, n):
        """The first n numbers."""
        return self.bytes[BYTES:].view(self._dtype)[:n]

    def message(self, n, with_proof):
        """The bytes of n numbers, as they are sent and received."""
        return self.bytes[0 if with_proof else BYTES : BYTES + n * self._dtype().itemsize]

    def packed(self, values, proof):
        """The message of these values, which may lie here already, and the proof."""
        here = self.values(values.size)
        if here.ctypes.data != values.ctypes.data:
            here[:] = values
        proof.write(self.bytes)
        return self.message(values.size, True)


class Float32:
    """Numbers travel as they are, from the array and into it."""

    dtype, overflow = np.float32, None

    def __init__(self, n, own):
        """See Float16."""

    def encode(self, room, values, part):
        return values

    def sum(self, terms, total):
        if len(terms) == 1:
            np.copyto(total, terms[0])
        else:
            np.add(terms[0], terms[1], out=total)
        for term in terms[2:]:
            np.add(total, term, out=total)
        return total

    def result(self, room, own, total, divisor, part):
        return np.divide(total, divisor, out=own)

    def landing(self, room, values):
        return values

    def decode(self, values, landed):
        if values.ctypes.data != landed.ctypes.data:
            np.copyto(values, landed)


class Float16:
    """Numbers travel as float16.

    feedback  whether what rounding takes away is added to what is sent next
    n         floats in all          own  slice of them that this rank sums
    """

    dtype = np.float16

    def __init__(self, feedback, n, own):
        self.overflow, self._own, self._half = None, own, conversions()
        self._lost = np.zeros(n, np.float32) if feedback else None
        self._lost_of_sums = np.zeros(own.stop - own.start, np.float32) if feedback else None

    def encode(self, room, values, part):
        self._narrow(room, values, None if self._lost is None else self._lost[part], part, False, False)
        return room

    def sum(self, terms, total):
        self._half.widen(total, terms[0])
        for term in terms[1:]:
            self._half.add(total, term)
        return total

    def result(self, room, own, total, divisor, part):
        np.divide(total, divisor, out=total)
        first = self._own.start
        lost = None if self._lost is None else self._lost_of_sums[part.start - first : part.stop - first]
        self._narrow(room, total, lost, part, True, divisor != 1)
        self._half.widen(own, room)
        return room

    def landing(self, room, values):
        return room

    def decode(self, values, landed):
        self._half.widen(values, landed)

    def _narrow(self, to, values, lost, part, summed, mean):
        if lost is None:
            infinite = self._half.narrow(to, values)
        else:
            infinite = self._half.narrow_and_keep(to, values, lost)
        if infinite:
            places = np.isinf(to)
            index = int(places.argmax())
            to[places] = LARGEST                 # no infinity reaches an array, though the run ends
            if self.overflow is None:
                self.overflow = Overflowed(summed, summed and mean, part.start + index, float(values[index]))
