"""The CPU engine: C kernels for the heavy Ops, PyTensor's C linker for the small rest.

engine       the modes, and the rewrite that gives nodes their kernels        registry  Op class -> kernel
build        finds the C compiler, compiles and caches, loads                 memory    recycled arrays
convolution, pool, lrn, crop, dropout, dense, reduce, elemwise                one .py beside one .c each
"""

from alexnet.dispatch.cpu.engine import cpu_mode, reference_mode

__all__ = ["cpu_mode", "reference_mode"]
