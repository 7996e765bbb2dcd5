"""The same AlexNet in PyTorch, as an independent implementation for comparisons. It can load this project's weights.

PyTorch's layout is (batch, channel, row, column); filters are (out, in, row, column).
"""

import torch
from torch import nn


def torch_alexnet(classes=1000, dropout_rate=0.5):
    """Return AlexNet with theano_alexnet's layer order. PyTorch divides LRN's alpha by n, so alpha is 5e-4."""

    def lrn():
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), nn.MaxPool2d(3, 2), lrn(),
        nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2), lrn(),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(dropout_rate),
        nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout_rate),
        nn.Linear(4096, classes),
    )


def momentum_sgd(network, learning_rate=1e-3):
    """Return PyTorch's SGD with this project's constants: biases have twice the learning rate and no weight decay."""
    weights, biases = ([p for p in network.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": weights, "weight_decay": 5e-4, "lr": learning_rate},
              {"params": biases, "weight_decay": 0, "lr": 2 * learning_rate}]
    return torch.optim.SGD(groups, momentum=0.9)


def from_c01b(array):
    """Convert a parameter of this project to PyTorch's layout.

    Filters (in, row, column, out) become (out, in, row, column), dense weights (in, out) become (out, in).
    """
    axes = {4: (3, 0, 1, 2), 2: (1, 0), 1: (0,)}[array.ndim]
    return torch.from_numpy(array.transpose(axes).copy())


def load_weights(network, parameters):
    """Copy this project's parameters, {name: array} in order, into the PyTorch network."""
    with torch.no_grad():
        for target, array in zip(network.parameters(), parameters.values(), strict=True):
            target.copy_(from_c01b(array))
