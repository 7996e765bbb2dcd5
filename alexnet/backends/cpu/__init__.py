"""The CPU backend: C kernels for large arrays, NumPy for everything else.

linker     PyTensor modes, and the rewrite that replaces nodes by kernels
allocator  memory reuse for large arrays
kernels    one module per kernel, which registers it; the loops are in the .c file of the same name
           dot and join call NumPy and have no .c file
           elemwise generates the C loops of elementwise nodes from PyTensor's scalar Ops
           fused_update computes the weight gradient of a dense layer and updates the weights in one kernel
"""

from alexnet.backends.cpu.linker import cpu_mode, numpy_mode

__all__ = ["cpu_mode", "numpy_mode"]
