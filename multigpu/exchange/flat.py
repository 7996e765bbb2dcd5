"""A flat buffer: many arrays end to end in one piece of device memory, exported once and moved at once."""

from math import prod

import numpy as np

START = 16                                       # floats, 64 bytes: where an array may start
BLOCK = 1 << 15                                  # floats: three blocks stay in the L2 cache
PAGE = 1024                                      # floats: the whole is a multiple of it, so that it can be shared out


class Flat:
    """A buffer of `device` that holds float32 arrays of `shapes`; the last `spare` floats of it are in none of them.

    Where the engine computes on the host and the buffer lies there, unpack() makes the buffer the variables' own
    memory; an engine that updates in place then works in it, and neither pack() nor unpack() copies a thing.
    """

    def __init__(self, device, shapes, spare=0):
        self.device = device
        self._arrays = []                        # (shape, whether it is an array, not a gap before the next)
        self._parts, end = [], 0                 # (first byte, bytes) of each array
        for shape in map(tuple, shapes):
            self._parts.append((4 * end, 4 * prod(shape)))
            self._arrays.append((shape, True))
            end = self._fill_up(end + prod(shape), START)
        self.buffer = device.allocate(4 * self._fill_up(end, PAGE, spare))

    def _fill_up(self, end, unit, least=0):
        """The next multiple of `unit`, after a gap of at least so much, which is an array, too, that nobody uses."""
        if gap := least + -(end + least) % unit:
            self._arrays.append(((gap,), False))
        return end + gap

    def pack(self, variables):
        """Bring the values of shared variables into the buffer; may end later than the call."""
        for part, variable in zip(self._parts, variables, strict=True):
            self.device.upload(self.buffer.part(*part), variable.get_value(borrow=True))

    def unpack(self, variables):
        """Give the values in the buffer to shared variables."""
        arrays = self.device.unpack(self.buffer, [shape for shape, _ in self._arrays])
        kept = [array for array, (_, keep) in zip(arrays, self._arrays, strict=True) if keep]
        for variable, array in zip(variables, kept, strict=True):
            variable.container.storage[0] = array            # set_value() would fetch a GPU's array to the host

    def array(self):
        """The whole buffer as one float32 array, gaps included."""
        return self.buffer.array((self.buffer.nbytes // 4,), np.float32)

    def close(self):
        """Free the buffer."""
        self.buffer.close()


def blocks(*arrays):
    """Blocks of float arrays of one dimension, alike in length and dtype, and room for another of their size."""
    first = arrays[0]
    room = np.empty(min(BLOCK, first.size), first.dtype)
    for begin in range(0, first.size, BLOCK):
        parts = [array[begin : begin + BLOCK] for array in arrays]
        yield *parts, room[: parts[0].size]
