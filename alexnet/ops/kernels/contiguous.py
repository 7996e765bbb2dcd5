"""C-contiguous copies of the arrays that kernels read; the loop is in transpose.c."""

import math
from pathlib import Path

import numpy as np

from alexnet.native import allocator, compiler

SOURCE = Path(__file__).with_name("transpose.c")
TRANSPOSES = {
    itemsize: compiler.function(SOURCE, f"transpose{itemsize}", "aann") for itemsize in (1, 4, 8)
}


def contiguous(x: np.ndarray) -> np.ndarray:
    """Return an array in C order: x itself if it is, else a copy.

    Views of NCHW images or filters as c01b are transposed by several threads, at the speed of memory.
    """
    if x.flags.c_contiguous:
        return x
    if x.ndim == 4 and x.itemsize in TRANSPOSES and (rows := x.transpose(3, 0, 1, 2)).flags.c_contiguous:
        y = allocator.empty(x.shape, x.dtype)
        TRANSPOSES[x.itemsize](rows, y, x.shape[3], math.prod(x.shape[:3]))
        return y
    return np.ascontiguousarray(x)
