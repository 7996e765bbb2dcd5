"""A flat buffer: many arrays in one contiguous block of device memory, which is exported once and moved as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from alexnet.training.network import SharedVariable
    from multigpu.device import Buffer, Device

ALIGNMENT = 16                                   # floats, 64 bytes: each array starts at a multiple
BLOCK = 1 << 15                                  # floats: three blocks stay in the L2 cache
PAGE = 1024                                      # floats: the buffer size is a multiple, so that it can be split


class FlatBuffer:
    """A buffer on a device that holds float32 arrays.

    If the backend computes on the host and the buffer is in host memory, unpack() makes the shared variables use the
    buffer's memory. A backend that updates in place then works in the buffer, and pack() and unpack() copy nothing.

    Args:
        device: allocates the buffer.
        shapes: of the arrays.
        extra: least number of floats after the last array, for the header lanes of a reduction.
    """

    def __init__(self, device: Device, shapes: Iterable[Sequence[int]], extra: int = 0):
        self.device = device
        self._arrays: list[tuple[tuple[int, ...], bool]] = []    # (shape, True for an array, False for a gap)
        self._parts: list[tuple[int, int]] = []                  # (offset, size) of each array, in bytes
        end = 0
        for shape in map(tuple, shapes):
            self._parts.append((4 * end, 4 * prod(shape)))
            self._arrays.append((shape, True))
            end = self._fill_up(end + prod(shape), ALIGNMENT)
        self.size = self._fill_up(end, PAGE, extra)              # floats, including gaps
        self.buffer: Buffer = device.allocate(4 * self.size)

    def _fill_up(self, end: int, unit: int, least: int = 0) -> int:
        """Return the next multiple of `unit` after a gap of at least `least` floats.

        The gap is recorded as an unused array.
        """
        gap = least + -(end + least) % unit
        if gap:
            self._arrays.append(((gap,), False))
        return end + gap

    @property
    def n_arrays(self) -> int:
        """Number of arrays."""
        return len(self._parts)

    def pack(self, variables: Sequence[SharedVariable]) -> None:
        """Copy the values of shared variables into the buffer. Asynchronous on a GPU."""
        self.pack_arrays([variable.get_value(borrow=True) for variable in variables])

    def pack_arrays(self, arrays: Sequence[Any]) -> None:
        """Copy arrays of the backend into the buffer. Asynchronous on a GPU."""
        for part, array in zip(self._parts, arrays, strict=True):
            self.device.upload(self.buffer.part(*part), array)

    def unpack(self, variables: Sequence[SharedVariable]) -> None:
        """Set shared variables to the values in the buffer."""
        for variable, array in zip(variables, self.arrays(self.buffer), strict=True):
            variable.container.storage[0] = array            # set_value() would copy a GPU array to the host

    def arrays(self, buffer: Buffer) -> list[np.ndarray]:
        """Return the arrays in a buffer that is divided as this one; the backend may keep them."""
        arrays = self.device.unpack(buffer, [shape for shape, _ in self._arrays])
        return [array for array, (_, keep) in zip(arrays, self._arrays, strict=True) if keep]

    def array(self) -> np.ndarray:
        """Return the whole buffer as one float32 array, including gaps."""
        return self.buffer.array((self.size,), np.float32)

    def close(self) -> None:
        """Free the buffer."""
        self.buffer.close()


def blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield corresponding blocks of one-dimensional float arrays, and a scratch block of the same size.

    The arrays have the same length and dtype.
    """
    first = arrays[0]
    scratch = np.empty(min(BLOCK, first.size), first.dtype)
    for begin in range(0, first.size, BLOCK):
        parts = [array[begin : begin + BLOCK] for array in arrays]
        yield *parts, scratch[: parts[0].size]
