"""PyTorch's passes of each layer of AlexNet, one by one, under the names that benchmarks.nodes gives ours."""

import torch
from torch import nn

from benchmarks.torch_alexnet import momentum_sgd, torch_alexnet

LAYOUTS = (torch.contiguous_format, torch.channels_last)
NAMES = {nn.ReLU: ("bias and ReLU", "ReLU gradient"), nn.MaxPool2d: ("max pool", "max pool gradient"),
         nn.LocalResponseNorm: ("LRN", "LRN gradient"), nn.Dropout: ("dropout", "dropout gradient")}  # fmt: skip


def layer_modules(network):
    """Name -> modules from a weight layer to the next: conv1, relu, pool, normalisation and so on; no Flatten."""
    layers, count = {}, 0
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
            count += 1
            name = f"{'conv' if isinstance(module, nn.Conv2d) else 'fc'}{count}"
            layers[name] = []
        if not isinstance(module, nn.Flatten):
            layers[name].append(module)
    return layers


def input_shape(module, batch):
    """Of the images or features that a weight layer of this AlexNet takes."""
    if isinstance(module, nn.Linear):
        return batch, module.in_features
    side = {3: 227, 96: 27}.get(module.in_channels, 13)
    return batch, module.in_channels, side, side


def layer_passes(name, batch, layout):
    """Pass -> function that runs it, for a layer and what follows it, on random values."""
    network = torch_alexnet().to(memory_format=layout)
    weighted, *others = layer_modules(network)[name]
    y = random(input_shape(weighted, batch), layout)
    passes, y = weight_passes(weighted, y, layout)
    for module in others:
        both, y = module_passes(module, y, layout)
        passes |= both
    passes["update"] = update_pass(weighted)
    return {f"{name} {which}": run for which, run in passes.items()}


def random(shape, layout):
    values = torch.randn(shape)
    return values.contiguous(memory_format=layout) if len(shape) == 4 else values


def weight_passes(module, x, layout):
    """Of a convolution or dense layer, with its output."""
    y = module(x).detach()
    g, w = random(y.shape, layout), module.weight.detach()
    if isinstance(module, nn.Linear):
        gradients = {"input gradient": lambda: g @ w, "filter gradient": lambda: g.T @ x}
    else:
        geometry = (module.stride, module.padding, module.dilation, False, [0, 0], module.groups)

        def backward(*mask):
            return torch.ops.aten.convolution_backward(g, x, w, None, *geometry, [*mask, False])

        gradients = {"input gradient": lambda: backward(True, False), "filter gradient": lambda: backward(False, True)}
    if x.shape[1] == 3:
        del gradients["input gradient"]                  # nobody asks for the gradient of the images
    axes = [axis for axis in range(g.ndim) if axis != 1]
    return {"forward": lambda: module(x), **gradients, "bias gradient": lambda: g.sum(axes)}, y


def module_passes(module, x, layout):
    """Of a module without parameters, with its output."""
    forward, gradient = NAMES[type(module)]
    x = x.requires_grad_()
    y = module(x)
    g = random(y.shape, layout)
    backward = {gradient: lambda: torch.autograd.grad(y, x, g, retain_graph=True)}
    return {forward: lambda: module(x), **backward}, y.detach()


def update_pass(module):
    """One step of the optimizer on the layer's parameters."""
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    return momentum_sgd(module).step
