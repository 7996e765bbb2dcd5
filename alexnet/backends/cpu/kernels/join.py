"""Concatenation on the CPU, by NumPy, into memory of the allocator to avoid page faults."""

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.tensor.basic import Join

from alexnet.native import allocator
from alexnet.ops.registry import Run, cpu_kernel


@cpu_kernel(Join)
def join(op: Join, node: Apply) -> Run:
    constant_axis = getattr(op, "axis", None)    # PyTensor 3.0 has no Join.axis: the axis is the first input

    def run(*inputs: np.ndarray) -> tuple[np.ndarray]:
        axis, arrays = (int(inputs[0]), inputs[1:]) if constant_axis is None else (constant_axis, inputs)
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        return (np.concatenate(arrays, axis=axis, out=allocator.empty(shape, node.outputs[0].type.dtype)),)

    return run
