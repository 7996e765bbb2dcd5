"""Wire formats: float32 or float16 values, and message buffers with a StepHeader in front of the values.

    encode()   return the data to send for float32 values: the values themselves, or float16 in a scratch buffer
    sum()      write the float32 sum of received data, added in the given order, to `total`
    result()   return the data to send for total / divisor; store the values that all other ranks receive in `own`
    landing()  return the receive buffer for data that decode() then writes to `values`
    decode()   convert received data to float32

The first argument of encode(), result() and landing() is a scratch buffer of the piece's size in the wire dtype. part
is the slice of the whole array that the piece covers. overflow describes the first value that float16 could not
represent since overflow was set to None.
"""

import numpy as np

from multigpu.exchange.fp16 import LARGEST, conversions
from multigpu.exchange.step_header import BYTES, Overflowed


class MessageBuffer:
    """A buffer for a piece of `n` values, preceded by a StepHeader."""

    def __init__(self, n, dtype):
        self.bytes, self._dtype = np.zeros(BYTES + n * dtype().itemsize, np.uint8), dtype

    def values(self, n):
        """Return a view of the first n values."""
        return self.bytes[BYTES:].view(self._dtype)[:n]

    def message(self, n, with_proof):
        """Return the bytes that are sent or received for n values, with or without the StepHeader."""
        return self.bytes[0 if with_proof else BYTES : BYTES + n * self._dtype().itemsize]

    def packed(self, values, proof):
        """Return the message that consists of the header `proof` and these values.

        The values are copied unless they are already stored in this buffer.
        """
        here = self.values(values.size)
        if here.ctypes.data != values.ctypes.data:
            here[:] = values
        proof.write(self.bytes)
        return self.message(values.size, True)


class Float32:
    """Transfers values unchanged, directly from and into the array."""

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
    """Transfers values as float16.

    feedback  whether the rounding error is added to the values that are sent next
    n         number of floats in the whole array
    own       slice of the array that this rank sums
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
            to[places] = LARGEST                 # the run ends, but no infinity reaches an array
            if self.overflow is None:
                self.overflow = Overflowed(summed, summed and mean, part.start + index, float(values[index]))
