"""Convolutional networks as PyTensor graphs: ops -> backends -> nn -> models -> training.

ops       Ops that PyTensor lacks: formula, gradient, NumPy reference
backends  implementations of the Ops (cpu: C kernels, jax: XLA)
nn        layers and their parameters
models    AlexNet, CaffeNet, GoogLeNet and VGG-16, each written as the table of its paper
training  train, validate and predict functions of a model and an update rule; the training loop

Importing this package sets PyTensor's floatX to float32. It also stops PyTensor from searching for a BLAS library and
a C++ compiler, because no backend uses them. PyTensor itself is imported only by modules that build graphs.
"""

import os
import sys

if "pytensor" in sys.modules:
    sys.modules["pytensor"].config.floatX = "float32"
else:
    _flags = ["blas__ldflags=,cxx=", os.environ.get("PYTENSOR_FLAGS", ""), "floatX=float32"]     # the last one wins
    os.environ["PYTENSOR_FLAGS"] = ",".join(filter(None, _flags))
