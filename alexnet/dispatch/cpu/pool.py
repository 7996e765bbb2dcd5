"""A recycling pool for large arrays: a step's memory is kept for the next, because fresh pages are slow to touch.

The memory of an array returns when its last view dies.  Small arrays are NumPy's business.
"""

import ctypes
import mmap
import threading
from collections import defaultdict, deque
from contextlib import suppress

import numpy as np

SMALL = 1 << 16                                  # bytes; below this NumPy's own allocation is as good
HUGE_PAGE = 1 << 21                              # bytes of a huge page on x86-64, and often on ARM


class _Block:
    """Memory of nbytes from an address that is a multiple of the huge page's size."""

    def __init__(self, nbytes):
        self.nbytes = nbytes
        self.map = mmap.mmap(-1, nbytes + HUGE_PAGE)         # the pages never touched cost nothing
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.address = -(-start // HUGE_PAGE) * HUGE_PAGE
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):              # a kernel without transparent huge pages: small ones serve
                self.map.madvise(mmap.MADV_HUGEPAGE)


class _Lease:
    """What an array's base points at: gives the block back when the last view has died."""

    def __init__(self, block, shape, dtype, give_back):
        self.block, self.give_back = block, give_back
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (block.address, False),
            "version": 3,
        }

    def __del__(self):
        self.give_back(self.block)


class Pool:
    """Blocks of memory, in use or free."""

    def __init__(self):
        self.lock = threading.Lock()
        self.free = defaultdict(list)            # nbytes -> free blocks
        self.returned = deque()                  # freed by __del__, which may run inside a lock: append is atomic
        self.bytes_held = 0

    def empty(self, shape, dtype):
        """Return an uninitialised array, aligned to 64 bytes where it is large, whose memory will be used again."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if nbytes < SMALL:
            return np.empty(shape, dtype)
        block = self._block(_rounded(nbytes))
        return np.asarray(_Lease(block, tuple(map(int, shape)), dtype, self.returned.append))

    def _block(self, nbytes):
        with self.lock:
            self._collect()
            fitting = [size for size, blocks in self.free.items() if blocks and nbytes <= size <= nbytes * 5 // 4]
            if fitting:
                return self.free[min(fitting)].pop()
            self.bytes_held += nbytes
        return _Block(nbytes)

    def _collect(self):
        while self.returned:
            block = self.returned.popleft()
            self.free[block.nbytes].append(block)

    def release(self):
        """Give the memory of all free blocks back to the system."""
        with self.lock:
            self._collect()
            self.bytes_held -= sum(size * len(blocks) for size, blocks in self.free.items())
            self.free.clear()


def _rounded(nbytes):
    """nbytes rounded up, to whole huge pages from one on, so that nearly equal arrays share blocks."""
    unit = HUGE_PAGE if nbytes >= HUGE_PAGE else SMALL
    return -(-nbytes // unit) * unit


_pool = Pool()
empty = _pool.empty
release = _pool.release


def bytes_held():
    """Return the bytes of all blocks, in use or free."""
    return _pool.bytes_held
