"""The CPU engine: C kernels for everything large, NumPy for the small rest.

engine    the modes, and the rewrite that gives nodes their kernels     registry  Op -> kernel
build     finds the C compiler, compiles, caches, loads                 pool      recycled memory for arrays
convolution, max_pool, average_pool, lrn, crop, dropout, dense, reduce, elemwise, join: the kernels, a thin .py that
registers them, its loops in a .c (elemwise writes its own from PyTensor's formulas; dense and join are NumPy's)
"""

from alexnet.dispatch.cpu.engine import cpu_mode, reference_mode

__all__ = ["cpu_mode", "reference_mode"]
