"""The JAX engine: one lowering for each Op, and XLA fuses and compiles the whole graph, for a GPU or for the CPU.

engine    the mode: the linker that keeps the state on its device and donates what is updated
convolution, max_pool, average_pool, lrn, crop, dropout: the lowerings, Op -> function of JAX arrays
basic     of PyTensor's own Ops
"""

from alexnet.dispatch.jax.engine import jax_mode

__all__ = ["jax_mode"]
