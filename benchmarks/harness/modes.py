"""Rates of the library's functions in plain PyTensor functions, compared with the trainer's mode: kernels --modes.

Each convolutional layer of AlexNet is computed separately, forward and with its gradients, by conv2d() in the trainer's
mode and in PyTensor's default mode, in c01b and in NCHW, in turn. In NCHW every array is converted: images, result and
its gradient. In a chain of layers only those at its ends are; the last rows are such a chain of all five layers, with
bias, ReLU, pooling and LRN, and an update of the parameters.
"""

import statistics

import numpy as np
import pytensor
import pytensor.tensor as pt

from alexnet.backends import mode_of
from alexnet.ops import conv2d, lrn, max_pool2d
from benchmarks.harness import report

# Input channels, side, filters, filter side, stride, padding, groups, whether pooling and LRN follow
LAYERS = {
    "conv1": (3, 227, 96, 11, 4, 0, 1, True, True),
    "conv2": (96, 27, 256, 5, 1, 2, 2, True, True),
    "conv3": (256, 13, 384, 3, 1, 1, 1, False, False),
    "conv4": (384, 13, 384, 3, 1, 1, 2, False, False),
    "conv5": (384, 13, 256, 3, 1, 1, 2, True, False),
}
TRAINER = "trainer's mode"
MODES = {TRAINER: ("c01b", lambda: mode_of("cpu")), "default, c01b": ("c01b", lambda: None),
         "default, NCHW": ("NCHW", lambda: None)}


def shared(rng, shape, layout, scale=1.0):
    """Return random values of an NCHW shape as a shared variable in the layout."""
    values = (scale * rng.standard_normal(shape)).astype(np.float32)
    if layout == "c01b":
        values = np.ascontiguousarray(values.transpose(1, 2, 3, 0))
    return pytensor.shared(values, shape=values.shape)


def layer_functions(name, batch, layout, mode):
    """Return functions of nothing: the forward pass, and the gradients of a layer."""
    channels, side, filters, size, stride, padding, groups, *_ = LAYERS[name]
    rng = np.random.default_rng(0)
    out = (side + 2 * padding - size) // stride + 1
    x = shared(rng, (batch, channels, side, side), layout)
    W = shared(rng, (filters, channels // groups, size, size), layout)
    g = shared(rng, (batch, filters, out, out), layout)
    y = conv2d(x, W, stride=stride, padding=padding, groups=groups, layout=layout)
    gradients = pytensor.grad(None, [W] if name == "conv1" else [x, W], known_grads={y: g})

    def compiled(outputs):
        return pytensor.function([], [pytensor.Out(each, borrow=True) for each in outputs], mode=mode)

    return {"forward": compiled([y]), "gradients": compiled(gradients)}


def chain(batch, layout, mode):
    """Return a function of nothing that updates the parameters of all layers once."""
    rng = np.random.default_rng(0)
    h = shared(rng, (batch, 3, 227, 227), layout)
    parameters = []
    for channels, _, filters, size, stride, padding, groups, pooled, normalised in LAYERS.values():
        W = shared(rng, (filters, channels // groups, size, size), layout, 0.02)
        bias = pytensor.shared(np.zeros(filters, np.float32), shape=(filters,))
        parameters += [W, bias]
        h = pt.maximum(conv2d(h, W, bias, stride, padding, groups=groups, layout=layout), 0)
        h = max_pool2d(h, 3, 2, layout=layout) if pooled else h
        h = lrn(h, layout=layout) if normalised else h
    cost = (h**2).mean()
    gradients = pytensor.grad(cost, parameters)
    updates = [(p, p - np.float32(1e-4) * g) for p, g in zip(parameters, gradients, strict=True)]
    return pytensor.function([], cost, updates=updates, mode=mode)


def compared(name, functions, runs):
    """Yield a row for each mode: the median time of its function, with the trainer's mode as the peer."""
    for run in functions.values():
        run()
    times = {mode: [] for mode in functions}
    for _ in range(runs):
        for mode, run in functions.items():
            times[mode].append(1e3 * report.seconds(run))
    peer = statistics.median(times[TRAINER])
    for mode, values in times.items():
        row = report.row(f"{name}, {mode}", values, "ms")
        yield row if mode == TRAINER else report.compared(row, peer, TRAINER, faster=True)


def rows(batch, runs):
    """Yield the rows of all layers and of the chain."""
    for name in LAYERS:
        built = {mode: layer_functions(name, batch, layout, make()) for mode, (layout, make) in MODES.items()}
        for which in ("forward", "gradients"):
            yield from compared(f"{name} {which}", {mode: each[which] for mode, each in built.items()}, runs)
    chains = {mode: chain(batch, layout, make()) for mode, (layout, make) in MODES.items()}
    yield from compared("a step of the chain", chains, runs)
