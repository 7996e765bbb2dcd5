"""The lowerings of the JAX backend: Op -> function of JAX arrays. Each module in this folder registers its lowerings.

basic replaces PyTensor's lowerings of Sum, Add and Mul.
"""

from alexnet.config.registry import import_modules

import_modules(__name__, __path__)
