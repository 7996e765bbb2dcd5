"""The CPU backend: C kernels for large arrays, NumPy for everything else.

linker   PyTensor modes, and the rewrite that replaces nodes by kernels
kernels  for the Ops that PyTensor defines; those for alexnet.ops are in alexnet.ops.kernels
         dot and join call NumPy
         elemwise generates the C loops of elementwise nodes from PyTensor's scalar Ops
         fused_update computes the weight gradient of a dense layer and updates the weights in one kernel
"""

from alexnet.backends.cpu.linker import cpu_mode, numpy_mode

__all__ = ["cpu_mode", "numpy_mode"]
