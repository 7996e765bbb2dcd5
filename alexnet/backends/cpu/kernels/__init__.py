"""The kernels of the CPU backend. Each module in this folder registers its kernels; the loops are in the .c files."""

from alexnet.config.registry import import_modules

import_modules(__name__, __path__)
