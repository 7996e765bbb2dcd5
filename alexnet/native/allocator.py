"""Allocator for large arrays: each training step reuses the memory of the previous one and avoids page faults.

An array's memory is released when its last view is deleted. Allocation is first-fit from the lowest address, and
adjacent gaps are merged. Arrays of all sizes therefore share the same pages, and the memory held stays close to the
peak use. NumPy allocates small arrays.
"""

import ctypes
import mmap
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

SMALL = 1 << 16                                  # bytes; for smaller arrays NumPy is as fast
HUGE_PAGE = 1 << 21                              # bytes of a huge page on x86-64, and on many ARM systems
REGION = 1 << 30                                 # bytes of address space reserved at once; untouched pages are free


class _Region:
    """A mapped memory region; `gaps` lists its free parts in order, as (start, end) byte offsets from `address`."""

    def __init__(self, nbytes: int) -> None:
        self.map = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.address = -(-start // HUGE_PAGE) * HUGE_PAGE
        self.gaps = [(0, nbytes)]
        self.touched = 0                         # bytes from the start that have ever been in use
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):              # no transparent huge pages: use normal pages
                self.map.madvise(mmap.MADV_HUGEPAGE)

    def take(self, nbytes: int) -> int | None:
        """Reserve nbytes in the first gap that is large enough; return their offset, or None if no gap is."""
        for index, (start, end) in enumerate(self.gaps):
            if start + nbytes <= end:
                self.gaps[index : index + 1] = [(start + nbytes, end)] if start + nbytes < end else []
                self.touched = max(self.touched, start + nbytes)
                return start
        return None

    def give_back(self, start: int, nbytes: int) -> None:
        """Free nbytes at `start` and merge the new gap with adjacent gaps."""
        gaps: list[tuple[int, int]] = []
        for gap in sorted([*self.gaps, (start, start + nbytes)]):
            if gaps and gaps[-1][1] == gap[0]:
                gaps[-1] = gaps[-1][0], gap[1]
            else:
                gaps.append(gap)
        self.gaps = gaps


class _Lease:
    """The base object of an array: releases the memory when the last view is deleted."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: np.dtype, give_back: Callable[[], None]
    ) -> None:
        self.give_back = give_back
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self.give_back()


class Allocator:
    """Allocates arrays in common memory regions."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.regions: list[_Region] = []
        self.returned: deque[tuple[_Region, int, int]] = deque()     # filled by __del__, without the lock

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
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

    def _take(self, nbytes: int) -> tuple[_Region, int]:
        with self.lock:
            while self.returned:
                region, start, returned_bytes = self.returned.popleft()
                region.give_back(start, returned_bytes)
            for region in self.regions:
                free = region.take(nbytes)
                if free is not None:
                    return region, free
            region = _Region(max(nbytes, REGION))
            self.regions.append(region)
            region.take(nbytes)
            return region, 0

    @property
    def bytes_held(self) -> int:
        """Bytes that are in use or have been in use."""
        return sum(region.touched for region in self.regions)


_allocator = Allocator()
empty = _allocator.empty


def bytes_held() -> int:
    """Return the bytes of memory that arrays use, or have used and released for reuse."""
    return _allocator.bytes_held
