"""C kernels of the Ops, and the functions that call them."""
