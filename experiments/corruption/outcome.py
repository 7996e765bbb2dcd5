"""The outcome of a flip, and helpers that flip one bit of an array or of a file."""

from typing import NamedTuple

import numpy as np

KINDS = ("detected", "harmless", "silent")


class Outcome(NamedTuple):
    """What one flip did.

    kind    "detected": an error or a warning names it; "harmless": the results are equal to the bit; else "silent"
    where   the part of the place, such as the bytes of a file that were hit
    text    the message, if it was detected
    change  of a silent flip, the norm of the change of the final weights, relative to that of the weights
    error   of a silent flip, the change of the validation error, in [-1, 1]
    """

    kind: str
    where: str = ""
    text: str = ""
    change: float | None = None
    error: float | None = None


def flip_array(array, rng, region=slice(None)):
    """Flip a random bit of a C-contiguous array in place.

    Args:
        region: slice of its bytes in which the bit is.
    """
    data = array.reshape(-1).view(np.uint8)[region]
    assert np.shares_memory(data, array)
    data[rng.integers(data.size)] ^= np.uint8(1 << rng.integers(8))


def flip_file(path, rng, region=slice(None)):
    """Flip a random bit of a file in place; see flip_array for `region`."""
    data = np.fromfile(path, np.uint8)
    flip_array(data, rng, region)
    data.tofile(path)


def relative_change(arrays, reference):
    """Return the norm of the difference of two lists of arrays, relative to that of the second."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = sum(np.sum((np.float64(one) - other) ** 2) for one, other in zip(arrays, reference, strict=True))
        norm = sum(np.sum(np.float64(other) ** 2) for other in reference)
    return float(np.sqrt(squares / norm))


def same_bits(arrays, reference):
    """Return whether two lists of arrays are equal to the bit."""
    return all(one.tobytes() == other.tobytes() for one, other in zip(arrays, reference, strict=True))
