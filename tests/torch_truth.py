"""GoogLeNet, VGG-16, SqueezeNet, ResNet-50 and krizhevsky2012 in PyTorch functions: a reference in any float type.

Images are (batch, channel, row, column), as in PyTorch. A step makes millions of discrete decisions: ReLU decides
whether a value is above zero, max pooling decides which pixel is the largest. Rounding changes a few of them in any
implementation, and each change moves whole gradients by 1e-4 to 1e-2. The reference can therefore reuse the decisions
of our implementation. It counts those that differ from its own.
"""

from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alexnet import ops
from alexnet.nn import layers, residual

BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


class Results(NamedTuple):
    """Results of a training step, in our layout."""

    logits: np.ndarray          # (class, batch)
    cost: float
    gradients: dict             # name -> array
    decisions: list             # torch tensors, in order: above zero, or the largest pixel of each window
    otherwise: int              # number of given decisions that differ from its own


@contextmanager
def noting_decisions():
    """Yield a list to which layers append during the context: ReLU its output, max pooling its index.

    The networks of this module make their decisions in the same order.
    """
    noted, rectify, normalise = [], layers.relu, ops.BatchNorm2D.make_node

    def pool(self, x, training=None):
        y, index = ops.MaxPool2D(self.size, self.stride, self.pad, self.ceil)(x)
        noted.append(index)
        return y

    def relu(x):
        noted.append(rectify(x))
        return noted[-1]

    def normalised(self, *inputs):
        node = normalise(self, *inputs)
        noted.extend(node.outputs[:1] if self.relu else ())
        return node

    with (
        mock.patch.object(layers, "relu", relu), mock.patch.object(residual, "relu", relu),
        mock.patch.object(layers.MaxPool, "__call__", pool),
        mock.patch.object(ops.BatchNorm2D, "make_node", normalised),
    ):
        yield noted


class Parameters:
    """Our parameters by name as PyTorch tensors that require gradients, and the decisions of the forward pass.

    decisions  decisions to reuse: for ReLU, arrays in our layout that are positive where the value is above zero;
               for max pooling, our index; or tensors, as in `taken` of another instance. None: make its own.
    """

    training = True

    def __init__(self, arrays, dtype=torch.float64, decisions=None):
        self.tensors = {name: in_torchs_layout(array).to(dtype).requires_grad_() for name, array in arrays.items()}
        self.decisions = None if decisions is None else iter(decisions)
        self.taken, self.otherwise = [], 0

    def __getitem__(self, name):
        return self.tensors[name]

    def relu(self, x):
        above = self.decide(x > 0, lambda y: in_torchs_layout(y) > 0)
        return x * above

    def max_pool(self, x, size, stride, pad=0):
        own = F.max_pool2d(x, size, stride, pad, return_indices=True)[1]
        largest = self.decide(own, lambda index: flat_index(index, x.shape, size, stride, pad))
        return x.flatten(2).gather(2, largest.flatten(2)).view(own.shape)

    def decide(self, own, understood):
        decision = own if self.decisions is None else next(self.decisions)
        if isinstance(decision, np.ndarray):
            decision = understood(decision)
        assert decision.shape == own.shape, (decision.shape, own.shape)
        self.otherwise += int((decision != own).sum())
        self.taken.append(decision)
        return decision


def flat_index(index, image, size, stride, pad):
    """Convert our index, row * size + column in the window, to PyTorch's, row * width + column in the image."""
    rows, columns = np.divmod(index.astype(np.int64), size)
    rows += stride * np.arange(index.shape[1])[:, None, None] - pad
    columns += stride * np.arange(index.shape[2])[:, None] - pad
    return in_torchs_layout(rows * image[3] + columns)


def in_torchs_layout(array):
    return torch.from_numpy(np.asarray(array).transpose({4: (3, 0, 1, 2), 2: (1, 0), 1: (0,)}[array.ndim]).copy())


def in_our_layout(tensor):
    array = tensor.double().numpy()
    return array.transpose({4: (1, 2, 3, 0), 2: (1, 0), 1: (0,)}[array.ndim])


def conv(w, name, x, stride=1, pad=0, pool=None):
    """Convolution, max pooling, ReLU, in our order; pooling before ReLU changes neither values nor gradients."""
    x = F.conv2d(x, w[f"{name}.W"], w[f"{name}.b"], stride, pad)
    return w.relu(w.max_pool(x, *pool) if pool else x)


def dense(w, name, x):
    return F.linear(x, w[f"{name}.W"], w[f"{name}.b"])


def normalised(x):
    """Local response normalisation; PyTorch divides alpha by n = 5."""
    return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


def inception(w, name, x):
    one = conv(w, f"{name}.1x1", x)
    three = conv(w, f"{name}.3x3", conv(w, f"{name}.3x3_reduce", x), pad=1)
    five = conv(w, f"{name}.5x5", conv(w, f"{name}.5x5_reduce", x), pad=2)
    pooled = conv(w, f"{name}.pool_proj", w.max_pool(x, 3, 1, 1))
    return torch.cat([one, three, five, pooled], 1)


def tower(w, name, x):
    x = conv(w, f"{name}.conv", F.avg_pool2d(x, 5, 3)).flatten(1)
    return dense(w, f"{name}.classifier", w.relu(dense(w, f"{name}.fc", x)))


def googlenet(w, x):
    """Return [logits of 4a, logits of 4d, logits of the network]."""
    logits = []
    x = normalised(conv(w, "conv1", x, 2, 3, pool=(3, 2, 1)))
    x = normalised(conv(w, "conv3", conv(w, "conv2", x), pad=1, pool=(3, 2, 1)))
    for block in BLOCKS:
        x = inception(w, f"inception_{block}", x)
        if block in ("4a", "4d"):
            logits.append(tower(w, f"aux_{block}", x))
        if block in ("3b", "4e"):
            x = w.max_pool(x, 3, 2, 1)
    return [*logits, dense(w, "fc22", F.avg_pool2d(x, 7).flatten(1))]


def vgg16(w, x):
    """Return [logits]."""
    for n in range(1, 14):
        x = conv(w, f"conv{n}", x, pad=1, pool=(2, 2) if n in (2, 4, 7, 10, 13) else None)
    x = w.relu(dense(w, "fc15", w.relu(dense(w, "fc14", x.flatten(1)))))
    return [dense(w, "fc16", x)]


def fire(w, name, x):
    x = conv(w, f"{name}.squeeze1x1", x)
    return torch.cat([conv(w, f"{name}.expand1x1", x), conv(w, f"{name}.expand3x3", x, pad=1)], 1)


def squeezenet(w, x):
    """Return [logits]. With 227 pixels, no window of the pooling is incomplete."""
    x = conv(w, "conv1", x, 2, pool=(3, 2))
    for number in range(2, 10):
        x = fire(w, f"fire{number}", x)
        if number in (4, 8):
            x = w.max_pool(x, 3, 2)
    return [conv(w, "conv10", x).mean((2, 3))]


def batch_norm(w, name, x):
    """With the statistics of the batch in training, else the running statistics."""
    vectors = (w[f"{name}.{each}"] for each in ("mean", "variance", "gamma", "beta"))
    mean, variance, gamma, beta = vectors
    statistics = (None, None) if w.training else (mean, variance)
    return F.batch_norm(x, *statistics, gamma, beta, training=w.training, eps=1e-5)


def bottleneck(w, name, x, stride, stride_in_3x3):
    strides = (1, stride, 1) if stride_in_3x3 else (stride, 1, 1)
    y = x
    for number, (own, pad) in enumerate(zip(strides, (0, 1, 0), strict=True), start=1):
        y = batch_norm(w, f"{name}.bn{number}", F.conv2d(y, w[f"{name}.conv{number}.W"], None, own, pad))
        y = w.relu(y) if number < 3 else y
    if f"{name}.projection.W" in w.tensors:
        x = batch_norm(w, f"{name}.projection_bn", F.conv2d(x, w[f"{name}.projection.W"], None, stride))
    return w.relu(y + x)


def resnet50(w, x, stride_in_3x3=False):
    """Return [logits]."""
    x = w.relu(batch_norm(w, "bn1", F.conv2d(x, w["conv1.W"], None, 2, 3)))
    x = w.max_pool(x, 3, 2, 1)
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(1, blocks + 1):
            x = bottleneck(w, f"conv{stage}.{block}", x, 2 if stage > 2 and block == 1 else 1, stride_in_3x3)
    return [dense(w, "fc50", x.mean((2, 3)))]


def towers_normalised(x):
    """Local response normalisation of each of two towers, with the release's 2 + 1e-4 / 5 of the sum."""
    return torch.cat([F.local_response_norm(each, 5, alpha=1e-4, beta=0.75, k=2.0) for each in x.chunk(2, dim=1)], 1)


def krizhevsky2012(w, x):
    """Return [logits] of layers-145.cfg. Zeros complete the last windows of conv1."""
    x = F.conv2d(F.pad(x, (0, 3, 0, 3)), w["conv1.W"], w["conv1.b"], stride=4)
    x = w.relu(w.max_pool(towers_normalised(x), 3, 2))
    x = towers_normalised(w.relu(F.conv2d(x, w["conv2.W"], w["conv2.b"], padding=2, groups=2)))
    x = x / (1 + 0.001 * F.avg_pool2d(x * x, 5, stride=1, padding=2)) ** 0.75
    x = conv(w, "conv3", w.max_pool(x, 3, 2), pad=1)
    x = w.relu(F.conv2d(x, w["conv4.W"], w["conv4.b"], padding=1, groups=2))
    x = w.relu(w.max_pool(F.conv2d(x, w["conv5.W"], w["conv5.b"], padding=1, groups=2), 3, 2))
    x = w.relu(dense(w, "fc7", w.relu(dense(w, "fc6", x.flatten(1)))))
    return [dense(w, "fc8", x)]


def modules_of_krizhevsky2012():
    """Return the layers of layers-145.cfg that have parameters, both towers together."""
    return torch.nn.ModuleDict({
        "conv1": torch.nn.Conv2d(3, 96, 11, stride=4), "conv2": torch.nn.Conv2d(96, 256, 5, groups=2),
        "conv3": torch.nn.Conv2d(256, 384, 3), "conv4": torch.nn.Conv2d(384, 384, 3, groups=2),
        "conv5": torch.nn.Conv2d(384, 256, 3, groups=2), "fc6": torch.nn.Linear(256 * 6 * 6, 4096),
        "fc7": torch.nn.Linear(4096, 4096), "fc8": torch.nn.Linear(4096, 1000),
    })


def velocities_of_sgd(arrays, gradients, rate):
    """Return the change of each parameter in the first step of torch.optim.SGD, float64 in our layout.

    The settings are those of layer-params-145.cfg: biases have twice the rate and no weight decay.
    """
    tensors = {name: in_torchs_layout(array).double() for name, array in arrays.items()}
    for name, tensor in tensors.items():
        tensor.grad = in_torchs_layout(gradients[name])
    groups = [
        {"params": [tensors[name] for name in tensors if name.endswith(".W")], "lr": rate, "weight_decay": 5e-4},
        {"params": [tensors[name] for name in tensors if name.endswith(".b")], "lr": 2 * rate, "weight_decay": 0},
    ]
    torch.optim.SGD(groups, momentum=0.9).step()
    return {name: in_our_layout(tensor) - arrays[name] for name, tensor in tensors.items()}


def results(network, arrays, images, labels, dtype=torch.float64, decisions=None):
    """Return the Results of a network function of this module; images are in our layout, c01b."""
    w = Parameters(arrays, dtype, decisions)
    *auxiliary, logits = network(w, in_torchs_layout(images).to(dtype))
    labels = torch.tensor(labels).long()
    cost = F.cross_entropy(logits, labels) + 0.3 * sum(F.cross_entropy(each, labels) for each in auxiliary)
    cost.backward()
    gradients = {name: in_our_layout(tensor.grad) for name, tensor in w.tensors.items() if tensor.grad is not None}
    return Results(logits.detach().double().numpy().T, cost.item(), gradients, w.taken, w.otherwise)


def check_step(network, reference, images, labels, bound=1e-5):
    """Check cost, logits and gradients of a Network's training step against a network function of this module.

    The reference takes the same decisions.

    Args:
        bound: of the distances of logits and gradients; "float32": 2 x those of PyTorch in float32.

    Returns:
        The top-1 error of the step, the reference's Results, and the number of decisions.
    """
    with noting_decisions() as noted:
        graph = network.training_graph
    outputs = [*graph.outputs, graph.logits, *graph.gradients, *noted]
    cost, error, logits, *computed = network.compile(graph.inputs, outputs)(images, labels)
    arrays = {variable.name: variable.get_value() for variable in network.parameters}
    names = [parameter.name for parameter in network.trainable_parameters]
    decisions = computed[len(names) :]
    expected = results(reference, arrays, images, labels, decisions=decisions)
    assert cost == pytest.approx(expected.cost, rel=1e-5)
    if bound == "float32":
        theirs = results(reference, arrays, images, labels, torch.float32, expected.decisions)
        bound = 2 * max(distance(theirs.gradients[name], expected.gradients[name]) for name in names)
    assert distance(logits, expected.logits) < bound
    if not network.running_statistics:           # otherwise validation computes something else
        assert distance(network.logits(images), expected.logits) < 1e-5
    far = {name: distance(gradient, expected.gradients[name]) for name, gradient in zip(names, computed, strict=False)}
    assert max(far.values()) < bound, far
    return error, expected, sum(map(np.size, decisions))


def check_inference(network, reference, images):
    """Check the logits of a Network in validation against a network function of this module, with its decisions."""
    with noting_decisions() as noted:
        inputs = network.image_inputs()
        run = network.compile(inputs.inputs, [network.model(inputs.pixels), *noted])
    logits, *decisions = map(np.asarray, run(images))
    w = Parameters({variable.name: variable.get_value() for variable in network.parameters}, decisions=decisions)
    w.training = False
    with torch.no_grad():
        expected = reference(w, in_torchs_layout(images).double())[-1]
    assert distance(logits, expected.numpy().T) < 1e-5


def distance(array, truth):
    """Return the largest difference, relative to the largest value of the reference."""
    return float(np.abs(array - truth).max() / np.abs(truth).max())
