"""Argument checks that all devices share: parts, arrays, copies and means."""

from math import prod

import numpy as np

from multigpu.device import MOST_SOURCES


def part(offset, nbytes, size):
    """Raise ValueError unless `nbytes` bytes from `offset` on are within a buffer of `size` bytes."""
    if offset < 0 or nbytes < 1 or offset + nbytes > size:
        raise ValueError(f"bytes {offset} to {offset + nbytes} are not within a buffer of {size}")


def fits(shape, dtype, size):
    """Raise ValueError unless an array of this shape and dtype fits a buffer of `size` bytes."""
    if prod(shape) * np.dtype(dtype).itemsize > size:
        raise ValueError(f"an array of {np.dtype(dtype)} {tuple(shape)} does not fit a buffer of {size} bytes")


def copy(destination, source):
    """Raise ValueError unless the two buffers have the same size."""
    if destination.nbytes != source.nbytes:
        raise ValueError(f"cannot copy {source.nbytes} bytes to a buffer of {destination.nbytes}")


def mean(destination, sources, also):
    """Raise ValueError unless these buffers can be averaged."""
    if not 1 <= len(sources) <= MOST_SOURCES:
        raise ValueError(f"mean() takes 1 to {MOST_SOURCES} sources, got {len(sources)}")
    sizes = {buffer.nbytes for buffer in (destination, *sources, *also)}
    if len(sizes) > 1 or destination.nbytes % 4:
        raise ValueError(f"mean() takes buffers of float32 of one size, got {sorted(sizes)} bytes")
