"""Concatenation on the CPU: NumPy's copies into an array of the pool, which avoids page faults on fresh memory."""

import numpy as np
from pytensor.tensor.basic import Join

from alexnet.dispatch.cpu import pool
from alexnet.dispatch.cpu.registry import kernel


@kernel.register(Join)
def join(op, node):
    constant_axis = getattr(op, "axis", None)    # PyTensor 3.0 has no such property: the axis is the first input

    def run(*inputs):
        axis, arrays = (int(inputs[0]), inputs[1:]) if constant_axis is None else (constant_axis, inputs)
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        return (np.concatenate(arrays, axis=axis, out=pool.empty(shape, node.outputs[0].type.dtype)),)

    return run
