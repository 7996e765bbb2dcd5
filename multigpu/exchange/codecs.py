"""How values are sent: as float32 or as float16, in message buffers with a StepHeader in front of the values."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from multigpu.exchange.fp16 import LARGEST, conversions
from multigpu.exchange.step_header import HEADER_BYTES, OverflowInfo, StepHeader


class MessageBuffer:
    """A buffer for a piece of up to `n` values of this dtype, preceded by a StepHeader."""

    def __init__(self, n: int, dtype: type[np.generic]):
        self.bytes = np.zeros(HEADER_BYTES + n * dtype().itemsize, np.uint8)
        self._values = self.bytes[HEADER_BYTES:].view(dtype)

    def values(self, n: int) -> np.ndarray:
        """Return a view of the first n values."""
        return self._values[:n]

    def message(self, n: int, with_header: bool) -> np.ndarray:
        """Return the bytes that are sent or received for n values, with or without the StepHeader."""
        return self.bytes[0 if with_header else HEADER_BYTES : HEADER_BYTES + n * self._values.itemsize]

    def pack(self, values: np.ndarray, header: StepHeader) -> np.ndarray:
        """Return the message that consists of a header and these values.

        The values are copied unless they are already stored in this buffer.
        """
        place = self.values(values.size)
        if place.ctypes.data != values.ctypes.data:
            place[:] = values
        header.write(self.bytes)
        return self.message(values.size, True)


class Codec(ABC):
    """Converts pieces of a float32 array to and from what is sent.

    `scratch` is a buffer of the piece's size in the dtype of the messages; `part` is the slice of the whole array that
    the piece covers.

    Attributes:
        dtype: of the values in a message.
        overflow: the first value that float16 could not represent since this was set to None.
    """

    dtype: ClassVar[type[np.generic]]

    def __init__(self, n: int, own_slice: slice):
        """Prepare for arrays of n floats, of which this rank sums a slice."""
        self.overflow: OverflowInfo | None = None

    @abstractmethod
    def encode(self, scratch: np.ndarray, values: np.ndarray, part: slice) -> np.ndarray:
        """Return the data to send for these values: the values themselves, or the scratch buffer."""

    @abstractmethod
    def sum(self, terms: list[np.ndarray], total: np.ndarray) -> np.ndarray:
        """Write the float32 sum of received data, added in the given order, to `total`, and return it."""

    @abstractmethod
    def finish(
        self, scratch: np.ndarray, own: np.ndarray, total: np.ndarray, divisor: np.float32, part: slice
    ) -> np.ndarray:
        """Return the data to send for total / divisor; store the values that all other ranks receive in `own`."""

    @abstractmethod
    def receive_buffer(self, scratch: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the buffer for data that decode() then writes to `values`: these, or the scratch buffer."""

    @abstractmethod
    def decode(self, values: np.ndarray, received: np.ndarray) -> None:
        """Convert received data to float32."""


class Float32Codec(Codec):
    """Sends values unchanged, directly from and into the array."""

    dtype = np.float32

    def encode(self, scratch: np.ndarray, values: np.ndarray, part: slice) -> np.ndarray:
        return values

    def sum(self, terms: list[np.ndarray], total: np.ndarray) -> np.ndarray:
        if len(terms) == 1:
            np.copyto(total, terms[0])
        else:
            np.add(terms[0], terms[1], out=total)
        for term in terms[2:]:
            np.add(total, term, out=total)
        return total

    def finish(
        self, scratch: np.ndarray, own: np.ndarray, total: np.ndarray, divisor: np.float32, part: slice
    ) -> np.ndarray:
        return np.divide(total, divisor, out=own)

    def receive_buffer(self, scratch: np.ndarray, values: np.ndarray) -> np.ndarray:
        return values

    def decode(self, values: np.ndarray, received: np.ndarray) -> None:
        if values.ctypes.data != received.ctypes.data:
            np.copyto(values, received)


class Float16Codec(Codec):
    """Sends values as float16.

    Args:
        n: number of floats in the whole array.
        own_slice: slice of the array that this rank sums.
        feedback: whether the rounding error is added to the values that are sent next.
    """

    dtype = np.float16

    def __init__(self, n: int, own_slice: slice, feedback: bool = False):
        super().__init__(n, own_slice)
        self._start = own_slice.start
        self._conversions = conversions()
        self._errors = np.zeros(n, np.float32) if feedback else None
        self._errors_of_sums = np.zeros(own_slice.stop - own_slice.start, np.float32) if feedback else None

    def encode(self, scratch: np.ndarray, values: np.ndarray, part: slice) -> np.ndarray:
        error = None if self._errors is None else self._errors[part]
        self._round(scratch, values, error, part, summed=False, mean=False)
        return scratch

    def sum(self, terms: list[np.ndarray], total: np.ndarray) -> np.ndarray:
        self._conversions.from_fp16(total, terms[0])
        for term in terms[1:]:
            self._conversions.add_fp16(total, term)
        return total

    def finish(
        self, scratch: np.ndarray, own: np.ndarray, total: np.ndarray, divisor: np.float32, part: slice
    ) -> np.ndarray:
        np.divide(total, divisor, out=total)
        error = None
        if self._errors_of_sums is not None:
            error = self._errors_of_sums[part.start - self._start : part.stop - self._start]
        self._round(scratch, total, error, part, summed=True, mean=bool(divisor != 1))
        self._conversions.from_fp16(own, scratch)
        return scratch

    def receive_buffer(self, scratch: np.ndarray, values: np.ndarray) -> np.ndarray:
        return scratch

    def decode(self, values: np.ndarray, received: np.ndarray) -> None:
        self._conversions.from_fp16(values, received)

    def _round(
        self, halves: np.ndarray, values: np.ndarray, error: np.ndarray | None, part: slice, summed: bool, mean: bool
    ) -> None:
        """Round values to float16; record the first that overflows and replace it by the largest float16."""
        if error is None:
            overflows = self._conversions.to_fp16(halves, values)
        else:
            overflows = self._conversions.to_fp16_with_feedback(halves, values, error)
        if overflows:
            infinite = np.isinf(halves)
            index = int(np.argmax(infinite))
            halves[infinite] = LARGEST           # the run ends, but no infinity reaches an array
            if self.overflow is None:
                self.overflow = OverflowInfo(summed, mean, part.start + index, float(values[index]))
