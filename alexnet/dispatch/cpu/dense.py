"""Matrix products on the CPU: NumPy's own BLAS, which takes transposed views as they are, into a recycled array."""

import numpy as np
from pytensor.tensor.math import Dot

from alexnet.dispatch.cpu import pool
from alexnet.dispatch.cpu.registry import kernel


@kernel.register(Dot)
def dot(op, node):
    if {variable.type.dtype for variable in node.inputs} != {"float32"}:
        return None

    def run(x, y):
        return (np.dot(x, y, out=pool.empty((x.shape[0], y.shape[1]), np.float32)),)

    return run
