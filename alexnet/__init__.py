"""Convolutional networks as PyTensor graphs: ops -> backends -> nn -> models -> training.

ops       Ops that PyTensor lacks: formula, gradient, NumPy reference
backends  implementations of the Ops (cpu: C kernels, jax: XLA)
nn        layers and their parameters
models    AlexNet, CaffeNet, GoogLeNet and VGG-16, each written as the table of its paper
training  train, validate and predict functions of a model and an update rule; the training loop

Importing this package changes nothing outside it, such as PyTensor's flags, and imports neither PyTensor nor NumPy.
"""

__version__ = "0.1.0"
