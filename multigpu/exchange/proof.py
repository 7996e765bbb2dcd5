"""What a reduction proves: that it was one and the same step of all ranks, each of them in it once.

An MPI library can return wrong sums and call it success: Open MPI's default collectives did, over two hosts.  So every
reduction carries, in the messages that its numbers travel in, the number of the step and a one, whose sum is the
number of ranks.  Where float16 is on the wire, it carries the first value, too, that float16 cannot hold, so that all
ranks end with the same sentence.

By messages a Proof travels as 64 bytes of whole numbers, whatever the numbers beside it are.  An MPI or NCCL that adds
by itself adds Digits: float32, and exact, as the digits of the step are below 64; with their squares beside them the
sums tell whether all ranks have the same.
"""

from struct import Struct
from typing import NamedTuple

import numpy as np

from alexnet.training import Diverged
from multigpu.partners import OutOfStep

LAYOUT = Struct("=qqqq??xxxxxxqd8x")             # as the fields of Proof and Overflowed
BYTES = LAYOUT.size
NOBODY = 1 << 40                                 # a rank behind all others

BASE, PLACES = 64, 5                             # of the digits: 2**30 steps, exact for up to 4,000 ranks
DIGITS = 16                                      # floats: a one, the digits, their squares, 0


class Overflow(Diverged):
    """A value that float16 cannot hold; the message says whose."""


class Overflowed(NamedTuple):
    """A value that float16 cannot hold.

    summed  whether it is what a rank made of several ranks' values, or its own
    mean    then: their mean, or their sum
    index   of the element, in all arrays end to end
    """

    summed: bool
    mean: bool
    index: int
    value: float


class Proof(NamedTuple):
    """What one rank knows of a reduction, or several.

    first, last   the smallest and the largest step among them
    ones          how many they are
    rank          the lowest one with a value that float16 cannot hold; NOBODY
    overflowed    that value
    """

    first: int
    last: int
    ones: int = 1
    rank: int = NOBODY
    overflowed: Overflowed = Overflowed(False, False, 0, 0.0)

    def and_(self, *others):
        """The Proof of all of them together."""
        all_of_them = (self, *others)
        return Proof(
            min(each.first for each in all_of_them), max(each.last for each in all_of_them),
            sum(each.ones for each in all_of_them), *min(each[3:] for each in all_of_them),
        )  # fmt: skip

    def noting(self, rank, overflowed):
        """The Proof with what overflowed on a rank, if anything did."""
        return self if overflowed is None else self.and_(Proof(self.first, self.last, 0, rank, overflowed))

    def write(self, place):
        """Put it into the first BYTES of a uint8 array."""
        LAYOUT.pack_into(place, 0, *self[:4], *self.overflowed)

    @classmethod
    def read(cls, place):
        """The Proof in the first BYTES of a uint8 array."""
        first, last, ones, rank, *overflowed = LAYOUT.unpack_from(place)
        return cls(first, last, ones, rank, Overflowed(*overflowed))


def check(proofs, name, step, size):
    """Raise OutOfStep unless each proves the step for so many ranks; Overflow where any rank had too large a value."""
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
    """Put the Digits of the step into a float32 array of DIGITS."""
    digits = digits_of(step)
    place[:] = 0
    place[0], place[1 : 1 + PLACES], place[1 + PLACES : 1 + 2 * PLACES] = 1, digits, digits**2


def check_digits(place, name, step, size):
    """Raise OutOfStep unless these are the sums of so many ranks' Digits of this step."""
    digits = digits_of(step)
    expected = size * np.concatenate([[1], digits, digits**2])
    found = np.asarray(place[: len(expected)], np.float64)
    if not np.array_equal(found, expected):
        raise out_of_step(name, f"step {step} of {size} ranks", f"{found[0]:g} ranks whose steps are not the same")


def digits_of(step):
    return step // BASE ** np.arange(PLACES) % BASE


def out_of_step(name, expected, found):
    return OutOfStep(
        f"exchange={name} was to reduce {expected}, and found {found}: the ranks have parted, or MPI has lost what "
        "they sent; start all anew from one checkpoint, over Open MPI with --mca coll ^han"
    )
