"""The machine: C compiler driver with a cache of compiled kernels, processor cores, atomic writes, installed packages.

Only the standard library and, in compiler, NumPy are imported.
"""
