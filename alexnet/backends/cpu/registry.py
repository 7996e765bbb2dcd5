"""The table of kernels: kernel(op, node) returns a function run, or None if PyTensor should compute the node.

run takes the input arrays of the node and returns a tuple of its outputs. Everything that is known before the first
call (geometry, the compiled function) is bound once, outside run.
"""

from functools import singledispatch


@singledispatch
def kernel(op, node):
    """Return None: Ops without a registered kernel."""
    return None
