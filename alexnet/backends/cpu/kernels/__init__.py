"""CPU kernels for Ops that PyTensor defines. Each module here registers its kernels; reduce.c holds the only C loop."""

from alexnet.config.registry import import_modules

import_modules(__name__, __path__)
