"""Lowerings that replace those that PyTensor has. Each module in this folder registers its lowerings."""

from alexnet.config.registry import import_modules
from alexnet.ops import lowerings

import_modules(__name__, __path__)


def register() -> None:
    """Register these lowerings, and those of this package's Ops, with PyTensor's JAX mode."""
    lowerings.register()
