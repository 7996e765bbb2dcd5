"""The networks of alexnet.models in PyTorch, for comparisons of speed. They can load this project's weights.

AlexNet is written by hand (torch_alexnet.py). The others are built from the steps that the ONNX export writes, with the
auxiliary classifiers. The steps contain no dropout, which training in PyTorch therefore omits: a small advantage.
"""

import torch
from torch import nn

from alexnet.models import model_class
from alexnet.pretrained.graph import chain_of, towers_of
from benchmarks.harness.torch_alexnet import from_c01b, load_weights, torch_alexnet


def torch_network(name, classes=1000):
    """Return a network whose output is the list of the logits of the auxiliary classifiers and of the network."""
    if name == "alexnet":
        return Outputs(torch_alexnet(classes), ())
    model = model_class(name)(None, classes=classes)
    shapes = {parameter.name: parameter.shape for parameter in model.parameters}
    chain = [Step(layer, step, shapes) for layer, step in chain_of(name)]
    towers = [(before, Chain(tower, shapes)) for before, tower in towers_of(name)]
    return Outputs(nn.Sequential(*chain), towers)


def load_by_name(network, arrays):
    """Copy this project's parameters, {name: array}, into a network of torch_network()."""
    if not any(isinstance(module, Step) for module in network.modules()):
        load_weights(network, arrays)                    # the AlexNet written by hand
        return
    names = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "mean": "running_mean",
             "variance": "running_var"}
    with torch.no_grad():
        for step in network.modules():
            if isinstance(step, Step) and step.module is not None:
                for letter, theirs in names.items():
                    if f"{step.layer}.{letter}" in arrays and hasattr(step.module, theirs):
                        getattr(step.module, theirs).copy_(from_c01b(arrays[f"{step.layer}.{letter}"]))


class Outputs(nn.Module):
    """A sequence of modules, with (number of modules before it, module) of each auxiliary classifier."""

    def __init__(self, main, towers):
        super().__init__()
        self.main = main
        self.before = [before for before, _ in towers]
        self.towers = nn.ModuleList(tower for _, tower in towers)

    def forward(self, x):
        logits = []
        for number, module in enumerate(self.main):
            if self.training and number in self.before:
                logits.append(self.towers[self.before.index(number)](x))
            x = module(x)
        return [*logits, x]


class Chain(nn.Sequential):
    """The steps of a chain in sequence."""

    def __init__(self, chain, shapes):
        super().__init__(*(Step(layer, step, shapes) for layer, step in chain))


class Step(nn.Module):
    """One operation of a chain: a module with parameters, branches, or a function."""

    def __init__(self, layer, step, shapes):
        super().__init__()
        self.layer, self.operator = layer, step.operator
        self.branches = nn.ModuleList(Chain(branch, shapes) for branch in step.branches)
        self.module = module_of(layer, step, shapes)

    def forward(self, x):
        if self.operator == "Concat":
            return torch.cat([branch(x) for branch in self.branches], 1)
        if self.operator == "Add":
            one, other = (branch(x) for branch in self.branches)
            return one.add_(other)
        return self.module(x)


def module_of(layer, step, shapes):
    """Return the module of a step, or None if it has branches."""
    given = step.attributes.get
    if step.operator == "Conv":
        inputs, size, _, filters = shapes[f"{layer}.W"]
        return nn.Conv2d(inputs * given("group", 1), filters, size, given("strides", 1), given("pads", 0),
                         groups=given("group", 1), bias="b" in step.parameters)
    if step.operator == "Gemm":
        return nn.Linear(*shapes[f"{layer}.W"])
    if step.operator == "BatchNormalization":
        return nn.BatchNorm2d(shapes[f"{layer}.gamma"][0], eps=given("epsilon"))
    if step.operator == "LRN":
        return nn.LocalResponseNorm(given("size"), alpha=given("alpha"), beta=given("beta"), k=given("bias"))
    if step.operator == "MaxPool":
        ceil = bool(given("ceil_mode"))
        return nn.MaxPool2d(given("kernel_shape"), given("strides"), given("pads", 0), ceil_mode=ceil)
    if step.operator == "AveragePool":
        return nn.AvgPool2d(given("kernel_shape"), given("strides"))
    return {"Relu": nn.ReLU(inplace=True), "Flatten": nn.Flatten()}.get(step.operator)
