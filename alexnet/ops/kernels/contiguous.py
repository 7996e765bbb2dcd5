"""C-contiguous copies of the arrays that kernels read; the loop is in transpose.c."""

import math
from functools import cache
from pathlib import Path

import numpy as np

from alexnet.native import allocator, compiler

SOURCE = Path(__file__).with_name("transpose.c")
ITEMSIZES = 1, 4, 8                              # bytes of the elements that transpose.c can transpose


@cache
def transpose_of(itemsize: int) -> compiler.Function:
    """Return the C function; not at import, because it is needed only for NCHW arrays."""
    return compiler.function(SOURCE, f"transpose{itemsize}", "aann")


def contiguous(x: np.ndarray) -> np.ndarray:
    """Return an array in C order: x itself if it is, else a copy.

    Views of NCHW images or filters as c01b are transposed by several threads, at the speed of memory.
    """
    if x.flags.c_contiguous:
        return x
    if x.ndim == 4 and x.itemsize in ITEMSIZES and (rows := x.transpose(3, 0, 1, 2)).flags.c_contiguous:
        y = allocator.empty(x.shape, x.dtype)
        transpose_of(x.itemsize)(rows, y, x.shape[3], math.prod(x.shape[:3]))
        return y
    return np.ascontiguousarray(x)
