"""Layers. A layer is constructed once with its parameters, then called on a symbolic variable.

A layer maps activations to activations. Images are (channel, row, column, batch); the features of dense layers are
(feature, batch). In training, `noise` holds the random state of the stochastic layers; in validation, it is None.
There is no module state and no global training flag.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.builders import OpFromGraph

from alexnet import ops
from alexnet.ops.base import windows_along


class Noise(NamedTuple):
    """Random state of the stochastic layers in one training step. Both fields are integer scalars, symbolic or not."""

    seed: object            # differs between runs and workers
    step: object            # completed iterations


class LayerSummary(NamedTuple):
    """One row of `python -m alexnet summary`."""

    name: str
    shape: tuple            # of the output, without the batch axis
    parameters: int
    macs: int               # multiply-adds per image in the forward pass


class Parameter:
    """A shared variable with its multipliers of learning rate and weight decay.

    value       float array; not copied if it is C-contiguous and its dtype is floatX
    lr_mult     multiplier of the learning rate (2 for biases; Krizhevsky et al. 2012, cuda-convnet)
    decay_mult  multiplier of the weight decay (0 for biases)
    trainable   False if the parameter is frozen
    """

    trainable = True

    def __init__(self, value, name, lr_mult=1.0, decay_mult=1.0):
        value = np.ascontiguousarray(value, dtype=pytensor.config.floatX)
        self.variable = pytensor.shared(value, name=name, shape=value.shape, borrow=True)
        self.lr_mult, self.decay_mult = lr_mult, decay_mult

    @property
    def name(self):
        return self.variable.name

    def rename(self, name):
        self.variable.name = name

    @property
    def shape(self):
        return self.variable.type.shape

    @property
    def size(self):
        return int(np.prod(self.shape))


class Background:
    """Draws initial weights in a background thread. One thread draws in order, so the values equal those of rng itself.

    submit() returns before its array is filled; wait() returns once all arrays are filled.
    """

    def __init__(self, rng):
        self.rng, self.thread, self.pending = rng, ThreadPoolExecutor(1), []

    def submit(self, *arguments):
        self.pending.append(self.thread.submit(draw_normal, self.rng, *arguments))

    def wait(self):
        while self.pending:
            self.pending.pop().result()
        self.thread.shutdown()


def draw_normal(rng, out, std):
    """Fill out, float32, with samples of N(0, std**2). NumPy releases the GIL while it draws."""
    rng.standard_normal(out=out, dtype=np.float32)
    out *= np.float32(std)


def xavier(terms):
    """Return the standard deviation of weights for which a sum of `terms` inputs has the variance of one input.

    Source: Glorot and Bengio 2010, section 4.2.1, in the form of BVLC Caffe's filler "xavier". Caffe's filler samples a
    uniform distribution.
    """
    return terms**-0.5


def weights_and_biases(rng, shape, outputs, std, bias):
    """Return the two parameters of a layer: W ~ N(0, std**2) of `shape`, and b = bias for each output.

    Args:
        rng: NumPy Generator, a Background, or None. With None, W is 0 and the caller loads the values later.
        std: a number, or a function such as xavier that maps the number of terms per output to a number.
    """
    weights = np.zeros(shape, np.float32)
    std = std(math.prod(shape[:-1])) if callable(std) else std
    if isinstance(rng, Background):
        rng.submit(weights, std)
    elif rng is not None:
        draw_normal(rng, weights, std)
    return Parameter(weights, "W"), Parameter(np.full(outputs, bias), "b", lr_mult=2.0, decay_mult=0.0)


def relu(x):
    """Return y = max(x, 0); NaN stays NaN. The gradient of x is that of y where y > 0, else 0.

    Written this way, the gradient depends only on y, so x can be freed. Source: Krizhevsky et al. 2012, section 3.1.
    """
    value = x.type()
    return OpFromGraph([value], [pt.maximum(value, 0)], inline=True, pullback=relu_pullback)(x)


def relu_pullback(inputs, outputs, cotangents):
    return [pt.switch(outputs[0] > 0, cotangents[0], np.float32(0))]


class Conv:
    """Grouped convolution (cross-correlation), then max pooling, bias and ReLU.

    x       (channels, row, column, batch)
    W       (channels / groups, size, size, filters)
    pool    (size, stride) or (size, stride, pad) of the max pooling, or None

    Pooling precedes bias and ReLU. Both are non-decreasing, so the result is bit-identical and they process a quarter
    of the values. Source: Krizhevsky et al. 2012, section 3.
    """

    kind = "conv"

    def __init__(self, rng, channels, filters, size, stride=1, pad=0, groups=1, pool=None, std=0.01, bias=0.0):
        if channels % groups or filters % groups:
            raise ValueError(f"groups must divide channels and filters, got {groups} for {channels} and {filters}")
        self.size, self.stride, self.pad, self.filters = size, stride, pad, filters
        self.convolution = ops.Convolution(stride, pad, groups)
        self.pool = MaxPool(*pool) if pool else None
        self.W, self.b = weights_and_biases(rng, (channels // groups, size, size, filters), filters, std, bias)
        self.parameters = (self.W, self.b)

    def __call__(self, x, noise=None):
        y = self.convolution(x, self.W.variable)
        if self.pool:
            y = self.pool(y)
        return relu(y + self.b.variable.dimshuffle(0, "x", "x", "x"))

    def describe(self, shape):
        rows, columns = (windows_along(n, self.size, self.stride, self.pad) for n in shape[1:])
        parameters = self.W.size + self.b.size
        convolved = (self.filters, rows, columns)
        yield LayerSummary(self.kind, convolved, parameters, self.W.size * rows * columns)
        if self.pool:
            yield from self.pool.describe(convolved)


class MaxPool:
    """Max pooling over size x size windows, `stride` pixels apart. Windows start `pad` pixels before the image."""

    kind = "pool"
    parameters = ()

    def __init__(self, size, stride, pad=0):
        self.size, self.stride, self.pad = size, stride, pad

    def __call__(self, x, noise=None):
        return ops.MaxPool(self.size, self.stride, self.pad)(x)[0]

    def describe(self, shape):
        pooled = (windows_along(n, self.size, self.stride, self.pad) for n in shape[1:])
        yield LayerSummary(self.kind, (shape[0], *pooled), 0, 0)


class AveragePool:
    """Average pooling over size x size windows, `stride` pixels apart, without padding."""

    kind = "average"
    parameters = ()

    def __init__(self, size, stride):
        self.size, self.stride = size, stride

    def __call__(self, x, noise=None):
        return ops.AveragePool(self.size, self.stride)(x)

    def describe(self, shape):
        yield LayerSummary(
            self.kind, (shape[0], *(windows_along(n, self.size, self.stride) for n in shape[1:])), 0, 0
        )


class LRN:
    """Local response normalisation: x / (k + alpha * sum of x**2 over n channels) ** beta.

    alpha is not divided by n (Caffe and cuDNN divide it). Source: Krizhevsky et al. 2012, section 3.3.
    """

    kind = "lrn"
    parameters = ()

    def __init__(self, n=5, k=2.0, alpha=1e-4, beta=0.75):
        self.normalise = ops.LRN(n, k, alpha, beta)

    def __call__(self, x, noise=None):
        return self.normalise(x)

    def describe(self, shape):
        yield LayerSummary(self.kind, shape, 0, 0)


class Flatten:
    """Reshape (channel, row, column, batch) to (feature, batch), with the channel as the slowest axis of feature."""

    kind = "flatten"
    parameters = ()

    def __call__(self, x, noise=None):
        return x.reshape((int(np.prod(x.type.shape[:-1])), -1))

    def describe(self, shape):
        yield LayerSummary(self.kind, (int(np.prod(shape)),), 0, 0)


class Dense:
    """Fully connected layer, W'x + b, computed as the convolution of a 1 x 1 image with a 1 x 1 filter.

    x   (inputs, batch)
    W   (inputs, outputs)

    As a convolution, it runs on the same kernel and the same threads as the preceding layers.
    """

    kind = "fc"

    def __init__(self, rng, inputs, outputs, relu=True, std=0.005, bias=0.1):
        self.relu, self.outputs = relu, outputs
        self.W, self.b = weights_and_biases(rng, (inputs, outputs), outputs, std, bias)
        self.parameters = (self.W, self.b)

    def __call__(self, x, noise=None):
        image, filters = x.dimshuffle(0, "x", "x", 1), self.W.variable.dimshuffle(0, "x", "x", 1)
        y = ops.Convolution()(image, filters).dimshuffle(0, 3) + self.b.variable.dimshuffle(0, "x")
        return relu(y) if self.relu else y

    def describe(self, shape):
        yield LayerSummary(self.kind, (self.outputs,), self.W.size + self.b.size, self.W.size)


class Dropout:
    """Inverted dropout. Training sets a fraction `rate` of the values to 0 and divides the others by 1 - rate.

    Each Dropout layer of a network has a different stream. Source: Hinton et al. 2012; Krizhevsky et al. 2012, section
    4.2 (which is equivalent, but halves the outputs in testing instead).
    """

    kind = "dropout"
    parameters = ()

    def __init__(self, rate, stream):
        self.rate, self.stream = rate, stream

    def __call__(self, x, noise=None):
        if noise is None or self.rate == 0:
            return x
        return ops.Dropout(self.rate, self.stream)(x, noise.seed, noise.step)

    def describe(self, shape):
        yield LayerSummary(self.kind, shape, 0, 0)


class Sequential:
    """Layers applied in sequence.

    Layers with parameters are numbered from 1: conv1, conv2 … fc8. A layer without parameters has the number of the
    preceding layer with parameters. Parameters are named conv1.W, conv1.b etc. Inception and Auxiliary are constructed
    with a name, which prefixes the names of their layers. An Inception counts as two layers, its depth.

    names  names of the layers; None numbers them
    """

    def __init__(self, *layers, names=None):
        self.layers = layers
        self.names = names or tuple(numbered(layers))
        for name, layer in zip(self.names, layers, strict=True):
            if not isinstance(layer, Named):
                for parameter, letter in zip(layer.parameters, "Wb", strict=False):
                    parameter.rename(f"{name}.{letter}")

    @property
    def parameters(self):
        return tuple(parameter for layer in self.layers for parameter in layer.parameters)

    @property
    def weight_layers(self):
        """Name -> parameters of each layer with parameters: conv1, conv2 … fc8."""
        found = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            found |= layer.weight_layers if isinstance(layer, Named) else {name: layer.parameters}
        return {name: parameters for name, parameters in found.items() if parameters}

    @property
    def classifiers(self):
        """Names of the layers that output classes: the last of each auxiliary classifier and of the network."""
        towers = (layer.tower for layer in self.layers if isinstance(layer, Auxiliary))
        return tuple(list(part.weight_layers)[-1] for part in (*towers, self))

    def __call__(self, x, noise=None):
        for layer in self.layers:
            x = layer(x, noise)
        return x

    def training_outputs(self, x, noise):
        """Return the outputs used in training: those of the network, and (weight, outputs) per auxiliary classifier."""
        auxiliary = []
        for layer in self.layers:
            if isinstance(layer, Auxiliary):
                auxiliary.append((layer.weight, layer.tower(x, noise)))
            else:
                x = layer(x, noise)
        return x, auxiliary

    def describe(self, shape):
        """Yield the LayerSummary of each layer for an input of `shape` (channel, row, column)."""
        for layer, name in zip(self.layers, self.names, strict=True):
            given = shape
            for row in layer.describe(shape):
                yield row if isinstance(layer, Named) else row._replace(name=name_of_row(row, layer, name))
                shape = given if isinstance(layer, Auxiliary) else row.shape


def name_of_row(row, layer, name):
    """Return the name of a summary row, e.g. pool1 in conv1; the layer name itself unless that is kind plus number."""
    return row.name + name.removeprefix(layer.kind) if name.startswith(layer.kind) else name


def numbered(layers):
    """Yield the name of each layer: that of a Named layer, else its kind and the number of weight layers so far."""
    number = 0
    for layer in layers:
        if isinstance(layer, Named):
            number += layer.depth
            yield layer.name
        else:
            number += bool(layer.parameters)
            yield f"{layer.kind}{number}"


class Named:
    """Base class of composite layers. The names of the inner layers start with the name of the composite layer.

    depth  number of layers that it counts as
    parts  Sequentials, in the order of their parameters
    """

    depth = 0

    def __init__(self, name, *parts):
        self.name, self.parts = name, parts

    @property
    def parameters(self):
        return tuple(parameter for part in self.parts for parameter in part.parameters)

    @property
    def weight_layers(self):
        return {name: parameters for part in self.parts for name, parameters in part.weight_layers.items()}


class Inception(Named):
    """Inception module: branches with 1x1, 3x3 and 5x5 filters and with pooling, concatenated along the channel axis.

    channels    channels of x
    one         number of 1x1 filters
    three       (reduce, filters): number of 1x1 filters, and of the 3x3 filters that follow them
    five        (reduce, filters): number of 1x1 filters, and of the 5x5 filters that follow them
    projection  number of 1x1 filters after 3x3 max pooling

    Source: Szegedy et al. 2014, figure 2b and table 1.
    """

    depth = 2

    def __init__(self, rng, name, channels, one, three, five, projection, std=xavier, bias=0.2):
        conv, at = partial(Conv, rng, std=std, bias=bias), f"{name}.{{}}".format
        super().__init__(
            name,
            Sequential(conv(channels, one, 1), names=(at("1x1"),)),
            Sequential(
                conv(channels, three[0], 1), conv(*three, 3, pad=1), names=(at("3x3_reduce"), at("3x3")),
            ),
            Sequential(
                conv(channels, five[0], 1), conv(*five, 5, pad=2), names=(at("5x5_reduce"), at("5x5")),
            ),
            Sequential(
                MaxPool(3, 1, pad=1), conv(channels, projection, 1), names=(at("pool"), at("pool_proj")),
            ),
        )

    def __call__(self, x, noise=None):
        return pt.join(0, *(branch(x, noise) for branch in self.parts))

    def describe(self, shape):
        rows = [list(branch.describe(shape)) for branch in self.parts]
        yield from (row for branch in rows for row in branch)
        channels = sum(branch[-1].shape[0] for branch in rows)
        yield LayerSummary(self.name, (channels, *shape[1:]), 0, 0)


class Auxiliary(Named):
    """Auxiliary classifier on intermediate activations x. It is used only in training; calling it returns x unchanged.

    channels      channels of x, which has 14 x 14 pixels
    classes       number of outputs
    dropout_rate  rate of the Dropout before the last layer
    weight        weight of its cost in the training cost
    stream        stream of its Dropout

    Source: Szegedy et al. 2014, section 5.
    """

    def __init__(self, rng, name, channels, classes, dropout_rate, stream, weight=0.3):
        self.weight, at = weight, f"{name}.{{}}".format
        self.tower = Sequential(
            AveragePool(5, 3),
            Conv(rng, channels, 128, size=1, std=xavier, bias=0.2),
            Flatten(),
            Dense(rng, 2048, 1024, std=xavier, bias=0.2),
            Dropout(dropout_rate, stream),
            Dense(rng, 1024, classes, relu=False, std=xavier, bias=0.0),
            names=tuple(map(at, ("average", "conv", "flatten", "fc", "dropout", "classifier"))),
        )
        super().__init__(name, self.tower)

    def __call__(self, x, noise=None):
        return x

    def describe(self, shape):
        yield from self.tower.describe(shape)
