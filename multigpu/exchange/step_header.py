"""Integrity header of a reduction: detects whether all ranks reduced the same step, each exactly once.

An MPI library can return wrong sums without an error; Open MPI's default collectives did so on two hosts. Each
reduction therefore carries the step number and a one in the messages that carry its values. The ones add up to the
number of ranks. With float16 on the wire, the header also carries the first value that float16 cannot represent, so
that all ranks raise the same error.

A StepHeader occupies 64 bytes of integers in a message, whatever the dtype of the values. If MPI or NCCL computes the
sum, the array carries header lanes (digits) instead. These are float32 and exact, because each digit of the step is
below 64. The sums of the digits and of their squares show whether all ranks have the same step.
"""

from struct import Struct
from typing import NamedTuple

import numpy as np

from alexnet.training.loop import Diverged
from multigpu.communicator import DesyncError

LAYOUT = Struct("=qqqq??xxxxxxqd8x")             # the fields of StepHeader and Overflowed
BYTES = LAYOUT.size
NOBODY = 1 << 40                                 # higher than any rank

BASE, PLACES = 64, 5                             # base and number of digits: 2**30 steps, exact for up to 4,000 ranks
DIGITS = 16                                      # floats: a one, the digits, their squares, zeros


class Overflow(Diverged):
    """A value does not fit into float16. The message names the rank and the value."""


class Overflowed(NamedTuple):
    """A value that float16 cannot represent.

    summed  True: the value combines the values of several ranks; False: it is the rank's own value
    mean    if summed: True for a mean, False for a sum
    index   of the element in the concatenation of all arrays
    """

    summed: bool
    mean: bool
    index: int
    value: float


class StepHeader(NamedTuple):
    """State of a reduction, as known to one rank or combined over several ranks.

    first, last   the smallest and the largest step of these ranks
    ones          the number of ranks
    rank          the lowest rank with a value that float16 cannot represent; 1 << 40 if there is none
    overflowed    that value
    """

    first: int
    last: int
    ones: int = 1
    rank: int = NOBODY
    overflowed: Overflowed = Overflowed(False, False, 0, 0.0)

    def and_(self, *others):
        """Return the combination of this header and the others."""
        all_of_them = (self, *others)
        return StepHeader(
            min(each.first for each in all_of_them), max(each.last for each in all_of_them),
            sum(each.ones for each in all_of_them), *min(each[3:] for each in all_of_them),
        )

    def noting(self, rank, overflowed):
        """Return the header with an overflow of this rank added, or unchanged if overflowed is None."""
        return self if overflowed is None else self.and_(StepHeader(self.first, self.last, 0, rank, overflowed))

    def write(self, place):
        """Write the header to the first BYTES of a uint8 array."""
        LAYOUT.pack_into(place, 0, *self[:4], *self.overflowed)

    @classmethod
    def read(cls, place):
        """Read a header from the first BYTES of a uint8 array."""
        first, last, ones, rank, *overflowed = LAYOUT.unpack_from(place)
        return cls(first, last, ones, rank, Overflowed(*overflowed))


def check(proofs, name, step, size):
    """Check the headers of a reduction.

    Raises:
        DesyncError: a header does not have this step and number of ranks.
        Overflow: a rank had a value that float16 cannot represent.
    """
    for proof in proofs:
        if (proof.first, proof.last, proof.ones) != (step, step, size):
            steps = f"step {proof.first}" if proof.first == proof.last else f"steps {proof.first} to {proof.last}"
            raise out_of_step(name, f"step {step} of {size} ranks", f"{steps} of {proof.ones} ranks")
    rank, (summed, mean, index, value) = proofs[0].and_(*proofs[1:])[3:]
    if rank != NOBODY:
        whose = f"the {'mean' if mean else 'sum'} that rank {rank} made" if summed else f"a value of rank {rank}"
        raise Overflow(
            f"exchange={name}: float16 holds numbers up to 65504, but in step {step} {whose} is {value:.9g} (element "
            f"{index}); lower the learning_rate, or take a strategy with float32 on the wire"
        )


def write_digits(place, step):
    """Write the header lanes of the step into a float32 array of DIGITS elements."""
    digits = digits_of(step)
    place[:] = 0
    place[0], place[1 : 1 + PLACES], place[1 + PLACES : 1 + 2 * PLACES] = 1, digits, digits**2


def check_digits(place, name, step, size):
    """Raise DesyncError unless the array contains the summed header lanes of `size` ranks at this step."""
    digits = digits_of(step)
    expected = size * np.concatenate([[1], digits, digits**2])
    found = np.asarray(place[: len(expected)], np.float64)
    if not np.array_equal(found, expected):
        raise out_of_step(name, f"step {step} of {size} ranks", f"{found[0]:g} ranks whose steps are not the same")


def digits_of(step):
    return step // BASE ** np.arange(PLACES) % BASE


def out_of_step(name, expected, found):
    return DesyncError(
        f"exchange={name} expected {expected}, got {found}: the ranks are out of step or MPI lost data; restart from a "
        "checkpoint, with Open MPI using --mca coll ^han"
    )
