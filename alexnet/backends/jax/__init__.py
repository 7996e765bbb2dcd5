"""The JAX backend: one lowering per Op; XLA fuses and compiles the whole graph for a GPU or the CPU.

linker     the PyTensor mode; its linker keeps state on the device and donates the buffers of updated variables
precision  how XLA multiplies float32
lowerings  one module per Op, which registers its lowering
"""

from alexnet.backends.jax.linker import jax_mode

__all__ = ["jax_mode"]
