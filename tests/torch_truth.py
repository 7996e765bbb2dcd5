"""GoogLeNet and VGG-16 in PyTorch's functions, from our parameters by name: the independent truth, in any float type.

Images are (batch, channel, row, column), as PyTorch has them.
"""

import numpy as np
import torch
from torch.nn import functional as F

BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


def tensors(arrays, dtype):
    """Name -> PyTorch's tensor of each of our parameters, which wants a gradient."""
    axes = {4: (3, 0, 1, 2), 2: (1, 0), 1: (0,)}
    return {
        name: torch.tensor(array.transpose(axes[array.ndim]).copy(), dtype=dtype).requires_grad_()
        for name, array in arrays.items()
    }


def ours(tensor):
    """A gradient in our layout."""
    array = tensor.double().numpy()
    return array.transpose({4: (1, 2, 3, 0), 2: (1, 0), 1: (0,)}[array.ndim])


def conv(w, name, x, stride=1, pad=0):
    return F.relu(F.conv2d(x, w[f"{name}.W"], w[f"{name}.b"], stride, pad))


def dense(w, name, x):
    return F.linear(x, w[f"{name}.W"], w[f"{name}.b"])


def normalised(x):
    """PyTorch divides alpha by n = 5."""
    return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


def inception(w, name, x):
    three = conv(w, f"{name}.3x3", conv(w, f"{name}.3x3_reduce", x), pad=1)
    five = conv(w, f"{name}.5x5", conv(w, f"{name}.5x5_reduce", x), pad=2)
    pooled = conv(w, f"{name}.pool_proj", F.max_pool2d(x, 3, 1, 1))
    return torch.cat([conv(w, f"{name}.1x1", x), three, five, pooled], 1)


def tower(w, name, x):
    x = conv(w, f"{name}.conv", F.avg_pool2d(x, 5, 3)).flatten(1)
    return dense(w, f"{name}.classifier", F.relu(dense(w, f"{name}.fc", x)))


def googlenet(w, x):
    """[logits of 4a, of 4d, of the network]."""
    logits = []
    x = normalised(F.max_pool2d(conv(w, "conv1", x, 2, 3), 3, 2, 1))
    x = normalised(F.max_pool2d(conv(w, "conv3", conv(w, "conv2", x), pad=1), 3, 2, 1))
    for block in BLOCKS:
        x = inception(w, f"inception_{block}", x)
        if block in ("4a", "4d"):
            logits.append(tower(w, f"aux_{block}", x))
        if block in ("3b", "4e"):
            x = F.max_pool2d(x, 3, 2, 1)
    return [*logits, dense(w, "fc22", F.avg_pool2d(x, 7).flatten(1))]


def vgg16(w, x):
    """[logits]."""
    for n in range(1, 14):
        x = conv(w, f"conv{n}", x, pad=1)
        x = F.max_pool2d(x, 2) if n in (2, 4, 7, 10, 13) else x
    x = F.relu(dense(w, "fc15", F.relu(dense(w, "fc14", x.flatten(1)))))
    return [dense(w, "fc16", x)]


def results(network, arrays, images, labels, dtype=torch.float64):
    """(logits (class, batch), cost, name -> gradient) in our layout; images are ours, c01b."""
    w = tensors(arrays, dtype)
    *auxiliary, logits = network(w, torch.tensor(images.transpose(3, 0, 1, 2).copy(), dtype=dtype))
    labels = torch.tensor(labels).long()
    cost = F.cross_entropy(logits, labels) + 0.3 * sum(F.cross_entropy(each, labels) for each in auxiliary)
    cost.backward()
    gradients = {name: ours(tensor.grad) for name, tensor in w.items()}
    return logits.detach().double().numpy().T, cost.item(), gradients


def distance(array, truth):
    """The largest difference, relative to the largest of the truth."""
    return float(np.abs(array - truth).max() / np.abs(truth).max())
