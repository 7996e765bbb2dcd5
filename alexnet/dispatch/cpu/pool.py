"""A recycling pool for large arrays: a step's memory is kept for the next, because fresh pages are slow to touch.

The memory of an array returns when its last view dies.  An array takes the first gap it fits into, counted from the
lowest address, and neighbouring gaps become one: so arrays of all sizes share the same pages, and a program holds
little more than it has in use at its peak.  Small arrays are NumPy's business.
"""

import ctypes
import mmap
import threading
from collections import deque
from contextlib import suppress

import numpy as np

SMALL = 1 << 16                                  # bytes; below this NumPy's own allocation is as good
HUGE_PAGE = 1 << 21                              # bytes of a huge page on x86-64, and often on ARM
REGION = 1 << 30                                 # bytes of address space taken at once; pages never touched are free


class _Region:
    """A stretch of memory: gaps are its free parts, (start, end) in order, in bytes from its address."""

    def __init__(self, nbytes):
        self.map = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.address = -(-start // HUGE_PAGE) * HUGE_PAGE
        self.gaps = [(0, nbytes)]
        self.touched = 0                         # bytes that have been in use, from the start on
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):              # a kernel without transparent huge pages: small ones serve
                self.map.madvise(mmap.MADV_HUGEPAGE)

    def take(self, nbytes):
        """Return the start of nbytes, now in use; None where no gap is large enough."""
        for place, (start, end) in enumerate(self.gaps):
            if start + nbytes <= end:
                self.gaps[place : place + 1] = [(start + nbytes, end)] if start + nbytes < end else []
                self.touched = max(self.touched, start + nbytes)
                return start
        return None

    def give_back(self, start, nbytes):
        """Make a gap of nbytes that were in use, one with the gaps beside it."""
        gaps = []
        for gap in sorted([*self.gaps, (start, start + nbytes)]):
            if gaps and gaps[-1][1] == gap[0]:
                gaps[-1] = gaps[-1][0], gap[1]
            else:
                gaps.append(gap)
        self.gaps = gaps


class _Lease:
    """What an array's base points at: gives the memory back when the last view has died."""

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
    """Regions of memory that arrays share."""

    def __init__(self):
        self.lock = threading.Lock()
        self.regions = []
        self.returned = deque()                  # freed by __del__, which may run inside a lock: append is atomic

    def empty(self, shape, dtype):
        """Return an uninitialised array, aligned to 64 bytes where it is large, whose memory will be used again."""
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
        """The bytes that are or have been in use."""
        return sum(region.touched for region in self.regions)


_pool = Pool()
empty = _pool.empty


def bytes_held():
    """Return the bytes of memory that arrays take, or have taken and left to the next."""
    return _pool.bytes_held
