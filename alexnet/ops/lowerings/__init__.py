"""JAX lowerings of the Ops: Op -> function of JAX arrays. Each module in this folder registers its lowerings."""

from pytensor.link.jax.dispatch import jax_funcify

from alexnet.config.registry import import_modules
from alexnet.ops.registry import pass_lowerings

import_modules(__name__, __path__)


def register() -> None:
    """Register the lowerings with PyTensor's JAX mode."""
    pass_lowerings(jax_funcify.register)
