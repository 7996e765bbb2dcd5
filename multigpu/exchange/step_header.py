"""Integrity header of a reduction: detects whether all ranks reduced the same step, each exactly once.

An MPI library can return wrong sums without an error; Open MPI's default collectives did so on two hosts. Each
reduction therefore carries the step number and a one in the messages that carry its values. The ones add up to the
number of ranks. With float16 messages, the header also carries the first value that float16 cannot represent, so that
all ranks raise the same error.

A StepHeader occupies 64 bytes of integers in a message, whatever the dtype of the values. If MPI or NCCL computes the
sum, the array carries header lanes instead: floats that are exact, because each digit of the step is below 64. The sums
of the digits and of their squares show whether all ranks have the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

import numpy as np

from alexnet.training.loop import Diverged
from multigpu.communicator import DesyncError

LAYOUT = Struct("=qqqq??xxxxxxqd8x")             # the fields of StepHeader and OverflowInfo
HEADER_BYTES = LAYOUT.size
NO_RANK = 1 << 40                                # higher than any rank

BASE = 64                                        # of the digits: exact for up to 4,000 ranks
N_DIGITS = 5                                     # 2**30 steps
LANES = 16                                       # floats: a one, the digits, their squares, zeros


class Overflow(Diverged):
    """A value does not fit into float16. The message names the rank and the value."""


class OverflowInfo(NamedTuple):
    """A value that float16 cannot represent.

    Attributes:
        summed: True: the value combines the values of several ranks; False: it is the rank's own value.
        mean: if summed, True for a mean, False for a sum.
        element: its index in the concatenation of all arrays.
        value: itself.
    """

    summed: bool
    mean: bool
    element: int
    value: float


class StepHeader(NamedTuple):
    """State of a reduction, as known to one rank or combined over several ranks.

    Attributes:
        first: the smallest step of these ranks.
        last: the largest step of these ranks.
        ones: the number of ranks.
        rank: the lowest rank with a value that float16 cannot represent, or NO_RANK.
        overflow: that value.
    """

    first: int
    last: int
    ones: int = 1
    rank: int = NO_RANK
    overflow: OverflowInfo = OverflowInfo(False, False, 0, 0.0)

    def combine(self, *others: StepHeader) -> StepHeader:
        """Return the combination of this header and the others."""
        headers = (self, *others)
        first = min(header.first for header in headers)
        last = max(header.last for header in headers)
        return StepHeader(first, last, sum(header.ones for header in headers), *min(header[3:] for header in headers))

    def with_overflow(self, rank: int, overflow: OverflowInfo | None) -> StepHeader:
        """Return the header with an overflow of this rank added, or unchanged if overflow is None."""
        return self if overflow is None else self.combine(StepHeader(self.first, self.last, 0, rank, overflow))

    def write(self, message: np.ndarray) -> None:
        """Write the header to the first HEADER_BYTES of a uint8 array."""
        LAYOUT.pack_into(message, 0, *self[:4], *self.overflow)

    @classmethod
    def read(cls, message: np.ndarray) -> StepHeader:
        """Read a header from the first HEADER_BYTES of a uint8 array."""
        first, last, ones, rank, *overflow = LAYOUT.unpack_from(message)
        return cls(first, last, ones, rank, OverflowInfo(*overflow))


def check_headers(headers: Sequence[StepHeader], name: str, step: int, size: int) -> None:
    """Check the headers of a reduction.

    Raises:
        DesyncError: a header does not have this step and number of ranks.
        Overflow: a rank had a value that float16 cannot represent.
    """
    for header in headers:
        if (header.first, header.last, header.ones) != (step, step, size):
            same = header.first == header.last
            steps = f"step {header.first}" if same else f"steps {header.first} to {header.last}"
            raise mismatch(name, step, size, f"{steps} of {header.ones} ranks")
    rank, (summed, mean, element, value) = headers[0].combine(*headers[1:])[3:]
    if rank != NO_RANK:
        source = f"the {'mean' if mean else 'sum'} that rank {rank} computed" if summed else f"a value of rank {rank}"
        raise Overflow(
            f"exchange={name}: float16 holds numbers up to 65504, but in step {step} {source} is {value:.9g} (element "
            f"{element}); lower the learning_rate, or use a strategy that sends float32"
        )


def write_lanes(lanes: np.ndarray, step: int) -> None:
    """Write the header lanes of the step into a float32 array of LANES elements."""
    values = lane_values(step)
    lanes[: values.size] = values
    lanes[values.size :] = 0


def check_lanes(lanes: np.ndarray, name: str, step: int, size: int) -> None:
    """Raise DesyncError unless the array contains the summed header lanes of `size` ranks at this step."""
    expected = size * lane_values(step)
    found = np.asarray(lanes[: expected.size], np.float64)
    if not np.array_equal(found, expected):
        raise mismatch(name, step, size, f"{found[0]:g} ranks whose steps are not the same")


def lane_values(step: int) -> np.ndarray:
    """Return a one, the digits of the step, and their squares."""
    digits = step // BASE ** np.arange(N_DIGITS) % BASE
    return np.concatenate([[1], digits, digits**2])


def mismatch(name: str, step: int, size: int, found: str) -> DesyncError:
    """Return the error of a reduction that found other steps or ranks."""
    return DesyncError(
        f"exchange={name} expected step {step} of {size} ranks, got {found}: the ranks are out of step or MPI lost "
        "data; restart from a checkpoint, with Open MPI using --mca coll ^han"
    )
