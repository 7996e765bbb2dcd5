"""The small AlexNet in PyTorch, independent of networks.py, with the functions that the training loop calls."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.harness.torch_alexnet import load_weights, momentum_sgd


def torch_small(classes, dropout_rate=0.5, alpha=5e-4):
    """Return the baseline of networks.py. PyTorch divides LRN's alpha by n = 5."""

    def lrn():
        return nn.LocalResponseNorm(5, alpha=alpha, beta=0.75, k=2.0)

    return nn.Sequential(
        nn.Conv2d(3, 16, 11, stride=11), nn.ReLU(), nn.MaxPool2d(3, 2), lrn(),
        nn.Conv2d(16, 32, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2), lrn(),
        nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
        nn.Conv2d(48, 32, 3, padding=1, groups=2), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 256), nn.ReLU(), nn.Dropout(dropout_rate),
        nn.Linear(256, 256), nn.ReLU(), nn.Dropout(dropout_rate),
        nn.Linear(256, classes),
    )


FAULTS = {                                       # what is wrong -> settings of the optimizer's groups: weights, biases
    "no momentum": ({"momentum": 0}, {"momentum": 0}),
    "PyTorch's Nesterov momentum": ({"nesterov": True}, {"nesterov": True}),
    "no weight decay": ({"weight_decay": 0}, {}),
    "weight decay of biases": ({}, {"weight_decay": 5e-4}),
    "one rate for weights and biases": ({}, {"factor": 1}),
}
LRN_FAULT = "alpha of the normalisation divided by 5"


class TorchNetwork:
    """PyTorch's network, optimizer and crops, in place of an alexnet.training Network.

    Args:
        model: the model whose initial weights are copied.
        mean: float32 (3, 256, 256), grey levels.
        dropout_rate: of both dropout layers.
        seed: of the dropout masks.
        fault: a name of FAULTS, LRN_FAULT, or None.
    """

    sums_read = sums_written = None              # of the bits of the state: none, so nothing is compared

    def __init__(self, model, mean, dropout_rate, seed=0, fault=None):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.model = model
        self.mean = mean
        arrays = {each.name: each.variable.get_value() for each in model.parameters}
        classes = list(arrays.values())[-1].size
        self.modules = torch_small(classes, dropout_rate, alpha=1e-4 if fault == LRN_FAULT else 5e-4)
        load_weights(self.modules, arrays)
        self.optimizer = momentum_sgd(self.modules)
        for group, factor, given in zip(self.optimizer.param_groups, (1, 2), FAULTS.get(fault, ({}, {})), strict=True):
            group.update({"factor": factor} | given)
        self.rate = None

    def train(self, images, rows, columns, mirrors, labels, rate):
        """Return cost and top-1 error before the update."""
        self.set_rate(float(rate))
        self.modules.train()
        self.optimizer.zero_grad()
        logits = self.modules(self.crops(images, rows, columns, mirrors))
        labels = torch.from_numpy(labels).long()
        cost = cross_entropy(logits, labels)
        cost.backward()
        self.optimizer.step()
        return cost.item(), (logits.argmax(1) != labels).double().mean().item()

    def set_rate(self, rate):
        """Set the rate of each group. PyTorch's velocity lacks the rate; a new rate scales it, as in our formula."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.rate not in (None, rate):
            for state in self.optimizer.state.values():
                if state.get("momentum_buffer") is not None:
                    state["momentum_buffer"] *= self.rate / rate
        self.rate = rate

    def validate(self, images, rows, columns, mirrors, labels):
        """Return cost, top-1 error, top-5 error and logits (class, batch)."""
        self.modules.eval()
        labels = torch.from_numpy(labels).long()
        with torch.no_grad():
            logits = self.modules(self.crops(images, rows, columns, mirrors))
            wrong = logits.topk(5, dim=1).indices != labels[:, None]
            return (cross_entropy(logits, labels).item(), wrong[:, 0].double().mean().item(),
                    wrong.all(1).double().mean().item(), logits.T.numpy())

    def crops(self, images, rows, columns, mirrors):
        """Return the crops of uint8 (3, 256, 256, batch) images, with the mean subtracted, in PyTorch's layout."""
        size = self.model.image_size
        crops = np.empty((images.shape[3], 3, size, size), "float32")
        for n, (row, column, mirror) in enumerate(zip(rows, columns, mirrors, strict=True)):
            window = np.s_[:, row : row + size, column : column + size]
            crop = images[..., n][window] - self.mean[window]
            crops[n] = crop[..., ::-1] if mirror else crop
        return torch.from_numpy(crops)

    def weights(self):
        """Return the parameters as float64 arrays, in order."""
        return [parameter.detach().double().numpy().copy() for parameter in self.modules.parameters()]
