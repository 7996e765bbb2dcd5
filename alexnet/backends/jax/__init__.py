"""The JAX backend: one lowering per Op; XLA fuses and compiles the whole graph for a GPU or the CPU.

linker    the PyTensor mode; its linker keeps state on the device and donates the buffers of updated variables
convolution, max_pool, average_pool, lrn, crop, dropout: the lowerings, Op -> function of JAX arrays
basic     lowerings that replace PyTensor's for Sum, Add and Mul
"""

from alexnet.backends.jax.linker import jax_mode

__all__ = ["jax_mode"]
