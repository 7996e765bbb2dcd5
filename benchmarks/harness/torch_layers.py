"""The passes of each AlexNet layer in PyTorch, with the names that benchmarks.nodes uses for this project."""

import torch
from torch import nn

from benchmarks.harness.torch_alexnet import momentum_sgd, torch_alexnet

LAYOUTS = (torch.contiguous_format, torch.channels_last)
NAMES = {nn.ReLU: ("bias and ReLU", "ReLU gradient"), nn.MaxPool2d: ("max pool", "max pool gradient"),
         nn.LocalResponseNorm: ("LRN", "LRN gradient"), nn.Dropout: ("dropout", "dropout gradient")}


def layer_modules(network):
    """Return {name: modules}: each weight layer and the modules before the next one, without Flatten."""
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
    """Return the shape of the images or features that a weight layer of this AlexNet takes."""
    if isinstance(module, nn.Linear):
        return batch, module.in_features
    side = {3: 227, 96: 27}.get(module.in_channels, 13)
    return batch, module.in_channels, side, side


def layer_passes(name, batch, layout):
    """Return {pass: function that runs it on random values} for a weight layer and the modules after it."""
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
    """Return the passes of a convolution or dense layer, and its output."""
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
        del gradients["input gradient"]                  # the gradient of the images is not needed
    axes = [axis for axis in range(g.ndim) if axis != 1]
    return {"forward": lambda: module(x), **gradients, "bias gradient": lambda: g.sum(axes)}, y


def module_passes(module, x, layout):
    """Return the passes of a module without parameters, and its output."""
    forward, gradient = NAMES[type(module)]
    x = x.requires_grad_()
    y = module(x)
    g = random(y.shape, layout)
    backward = {gradient: lambda: torch.autograd.grad(y, x, g, retain_graph=True)}
    return {forward: lambda: module(x), **backward}, y.detach()


def update_pass(module):
    """Return the function that runs one optimizer step on the layer's parameters."""
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    return momentum_sgd(module).step
