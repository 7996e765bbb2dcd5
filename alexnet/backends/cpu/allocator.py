"""Allocator for large arrays: each training step reuses the memory of the previous one and avoids page faults.

An array's memory is released when its last view is deleted. Allocation is first-fit from the lowest address, and
adjacent gaps are merged. Arrays of all sizes therefore share the same pages, and the memory held stays close to the
peak use. NumPy allocates small arrays.
"""

import ctypes
import mmap
import threading
from collections import deque
from contextlib import suppress

import numpy as np

SMALL = 1 << 16                                  # bytes; for smaller arrays NumPy is as fast
HUGE_PAGE = 1 << 21                              # bytes of a huge page on x86-64, and on many ARM systems
REGION = 1 << 30                                 # bytes of address space reserved at once; untouched pages are free


class _Region:
    """A mapped memory region; `gaps` lists its free parts in order, as (start, end) byte offsets from `address`."""

    def __init__(self, nbytes):
        self.map = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.address = -(-start // HUGE_PAGE) * HUGE_PAGE
        self.gaps = [(0, nbytes)]
        self.touched = 0                         # bytes from the start that have ever been in use
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):              # no transparent huge pages: use normal pages
                self.map.madvise(mmap.MADV_HUGEPAGE)

    def take(self, nbytes):
        """Reserve nbytes in the first gap that is large enough; return their offset, or None if no gap is."""
        for place, (start, end) in enumerate(self.gaps):
            if start + nbytes <= end:
                self.gaps[place : place + 1] = [(start + nbytes, end)] if start + nbytes < end else []
                self.touched = max(self.touched, start + nbytes)
                return start
        return None

    def give_back(self, start, nbytes):
        """Free nbytes at `start` and merge the new gap with adjacent gaps."""
        gaps = []
        for gap in sorted([*self.gaps, (start, start + nbytes)]):
            if gaps and gaps[-1][1] == gap[0]:
                gaps[-1] = gaps[-1][0], gap[1]
            else:
                gaps.append(gap)
        self.gaps = gaps


class _Lease:
    """The base object of an array: releases the memory when the last view is deleted."""

    def __init__(self, address, shape, dtype, give_back):
        self.give_back = give_back
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, False),
            "version": 3,
        }

    def __del__(self):
        self.give_back()


class Pool:
    """Allocates arrays in common memory regions."""

    def __init__(self):
        self.lock = threading.Lock()
        self.regions = []
        self.returned = deque()                  # filled by __del__, even while locked: append is atomic

    def empty(self, shape, dtype):
        """Return an uninitialised array; large ones are aligned to 64 bytes, and their memory is reused."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if nbytes < SMALL:
            return np.empty(shape, dtype)
        nbytes = -(-nbytes // SMALL) * SMALL
        region, start = self._take(nbytes)
        lease = _Lease(
            region.address + start,
            tuple(map(int, shape)),
            dtype,
            lambda: self.returned.append((region, start, nbytes)),
        )
        return np.asarray(lease)

    def _take(self, nbytes):
        with self.lock:
            while self.returned:
                region, *place = self.returned.popleft()
                region.give_back(*place)
            for region in self.regions:
                start = region.take(nbytes)
                if start is not None:
                    return region, start
            region = _Region(max(nbytes, REGION))
            self.regions.append(region)
            return region, region.take(nbytes)

    @property
    def bytes_held(self):
        """Bytes that are in use or have been in use."""
        return sum(region.touched for region in self.regions)


_pool = Pool()
empty = _pool.empty


def bytes_held():
    """Return the bytes of memory that arrays use, or have used and released for reuse."""
    return _pool.bytes_held
