"""Concatenation on the CPU, by NumPy, into memory of the allocator to avoid page faults."""

import numpy as np
from pytensor.tensor.basic import Join

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.registry import kernel


@kernel.register(Join)
def join(op, node):
    constant_axis = getattr(op, "axis", None)    # PyTensor 3.0 has no Join.axis: the axis is the first input

    def run(*inputs):
        axis, arrays = (int(inputs[0]), inputs[1:]) if constant_axis is None else (constant_axis, inputs)
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        return (np.concatenate(arrays, axis=axis, out=allocator.empty(shape, node.outputs[0].type.dtype)),)

    return run
