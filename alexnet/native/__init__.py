"""C compiler driver with a cache of compiled kernels, and the available processor cores."""
