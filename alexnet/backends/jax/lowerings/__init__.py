"""Lowerings of PyTensor's Ops that replace PyTensor's own. Each module in this folder registers its lowerings."""

from alexnet.config.registry import import_modules

import_modules(__name__, __path__)
