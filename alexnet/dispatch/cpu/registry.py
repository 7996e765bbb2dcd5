"""The table of kernels: kernel(op, node) -> run, or None where the node is better left to PyTensor.

run takes the node's inputs as arrays and returns a tuple of its outputs.  Whatever can be decided before the first
call (geometry, the compiled function) is bound once, outside run.
"""

from functools import singledispatch


@singledispatch
def kernel(op, node):
    """No kernel for other Ops."""
    return None
