"""A flat buffer: many arrays in one contiguous block of device memory, which is exported once and moved as a whole."""

from math import prod

import numpy as np

START = 16                                       # floats, 64 bytes: alignment of each array
BLOCK = 1 << 15                                  # floats: three blocks stay in the L2 cache
PAGE = 1024                                      # floats: the buffer size is a multiple, so that it can be split


class FlatBuffer:
    """A buffer on `device` that holds float32 arrays of `shapes`, and `spare` extra floats at its end.

    If the backend computes on the host and the buffer is in host memory, unpack() makes the shared variables use the
    buffer's memory. A backend that updates in place then works in the buffer, and pack() and unpack() copy nothing.
    """

    def __init__(self, device, shapes, spare=0):
        self.device = device
        self._arrays = []                        # (shape, True for an array, False for a gap)
        self._parts, end = [], 0                 # (offset, size) of each array, in bytes
        for shape in map(tuple, shapes):
            self._parts.append((4 * end, 4 * prod(shape)))
            self._arrays.append((shape, True))
            end = self._fill_up(end + prod(shape), START)
        self.buffer = device.allocate(4 * self._fill_up(end, PAGE, spare))

    def _fill_up(self, end, unit, least=0):
        """Return the next multiple of `unit` after a gap of at least `least` floats.

        The gap is recorded as an unused array.
        """
        if gap := least + -(end + least) % unit:
            self._arrays.append(((gap,), False))
        return end + gap

    def pack(self, variables):
        """Copy the values of shared variables into the buffer. Asynchronous on a GPU."""
        for part, variable in zip(self._parts, variables, strict=True):
            self.device.upload(self.buffer.part(*part), variable.get_value(borrow=True))

    def unpack(self, variables):
        """Set shared variables to the values in the buffer."""
        arrays = self.device.unpack(self.buffer, [shape for shape, _ in self._arrays])
        kept = [array for array, (_, keep) in zip(arrays, self._arrays, strict=True) if keep]
        for variable, array in zip(variables, kept, strict=True):
            variable.container.storage[0] = array            # set_value() would copy a GPU array to the host

    def array(self):
        """Return the whole buffer as one float32 array, including gaps."""
        return self.buffer.array((self.buffer.nbytes // 4,), np.float32)

    def close(self):
        """Free the buffer."""
        self.buffer.close()


def blocks(*arrays):
    """Yield corresponding blocks of one-dimensional float arrays, and a scratch block of the same size.

    The arrays have the same length and dtype.
    """
    first = arrays[0]
    room = np.empty(min(BLOCK, first.size), first.dtype)
    for begin in range(0, first.size, BLOCK):
        parts = [array[begin : begin + BLOCK] for array in arrays]
        yield *parts, room[: parts[0].size]
