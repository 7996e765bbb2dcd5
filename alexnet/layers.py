"""Layers: built once with their parameters, then called on a symbol.

A layer maps activations to activations.  Images are (channel, row, column, batch), the features of
dense layers (feature, batch).  `noise` is None when validating; in training it carries what the
random layers draw from, so there is neither a module state nor a global switch.
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
    """What a training step's random layers draw from: scalars, symbolic or plain integers."""

    seed: object            # of the run and the worker
    step: object            # iterations done


class LayerSummary(NamedTuple):
    """One row of `python -m alexnet summary`."""

    name: str
    shape: tuple            # of the output, without the batch
    parameters: int
    macs: int               # multiply-adds per image, forward


class Parameter:
    """A shared variable that training changes, and how fast.

    value       float array; it becomes the initial value itself where it is contiguous and of PyTensor's floatX
    lr_mult     the factor of the learning rate (2 for biases; Krizhevsky et al. 2012, cuda-convnet)
    decay_mult  the factor of the weight decay (0 for biases)
    learns      False: training leaves it as it is
    """

    learns = True

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
    """A numpy Generator that draws initial weights in a thread of its own, in order: the same numbers, without waiting.

    An array is filled some time after it was asked for; wait() returns when all of them are.
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
    """Fill out, float32, from N(0, std**2); the interpreter is free for others meanwhile."""
    rng.standard_normal(out=out, dtype=np.float32)
    out *= np.float32(std)


def xavier(terms):
    """The standard deviation of weights that lets a sum of so many terms vary as each of them does.

    Source: Glorot and Bengio 2010, section 4.2.1, in the form of BVLC Caffe's filler "xavier", which draws uniformly.
    """
    return terms**-0.5


def weights_and_biases(rng, shape, outputs, std, bias):
    """The two parameters of a layer: W ~ N(0, std**2) of `shape`, b = bias for each output.

    rng  numpy Generator, a Background of one, or None: W = 0, for values that come from elsewhere
    std  a number, or what gives it for the number of terms in the sum of an output: xavier
    """
    weights = np.zeros(shape, np.float32)
    std = std(math.prod(shape[:-1])) if callable(std) else std
    if isinstance(rng, Background):
        rng.submit(weights, std)
    elif rng is not None:
        draw_normal(rng, weights, std)
    return Parameter(weights, "W"), Parameter(np.full(outputs, bias), "b", lr_mult=2.0, decay_mult=0.0)


def rectify(x):
    """y = max(x, 0); NaN stays NaN.  Its gradient is that of y where y > 0, else 0.

    Said so, the gradient needs y alone, and x need not be kept for it.  Source: Krizhevsky et al. 2012, section 3.1.
    """
    value = x.type()
    return OpFromGraph([value], [pt.maximum(value, 0)], inline=True, pullback=rectify_pullback)(x)


def rectify_pullback(inputs, outputs, cotangents):
    return [pt.switch(outputs[0] > 0, cotangents[0], np.float32(0))]


class Conv:
    """Convolution (cross-correlation) in groups, then max pooling, then bias and ReLU.

    x       (channels, row, column, batch)
    W       (channels / groups, size, size, filters)
    pool    (size, stride) or (size, stride, pad) of the max pooling, or None

    Pooling comes before bias and ReLU because both are non-decreasing: the values are the same to
    the bit and there are four times fewer of them.  Source: Krizhevsky et al. 2012, section 3.
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
        return rectify(y + self.b.variable.dimshuffle(0, "x", "x", "x"))

    def describe(self, shape):
        rows, columns = (windows_along(n, self.size, self.stride, self.pad) for n in shape[1:])
        parameters = self.W.size + self.b.size
        convolved = (self.filters, rows, columns)
        yield LayerSummary(self.kind, convolved, parameters, self.W.size * rows * columns)
        if self.pool:
            yield from self.pool.describe(convolved)


class MaxPool:
    """The largest value of each size x size window, every `stride` pixels, the first `pad` pixels before the image."""

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
    """The mean of each size x size window, every `stride` pixels; no padding."""

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

    alpha is not divided by n (Caffe and cuDNN divide it).  Source: Krizhevsky et al. 2012, section 3.3.
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
    """(channel, row, column, batch) to (feature, batch), channels outermost."""

    kind = "flatten"
    parameters = ()

    def __call__(self, x, noise=None):
        return x.reshape((int(np.prod(x.type.shape[:-1])), -1))

    def describe(self, shape):
        yield LayerSummary(self.kind, (int(np.prod(shape)),), 0, 0)


class Dense:
    """A fully connected layer, W'x + b: the convolution of a 1 x 1 image by a 1 x 1 filter.

    x   (inputs, batch)
    W   (inputs, outputs)

    Said as a convolution it runs on the same kernel and the same threads as the layers before it.
    """

    kind = "fc"

    def __init__(self, rng, inputs, outputs, relu=True, std=0.005, bias=0.1):
        self.relu, self.outputs = relu, outputs
        self.W, self.b = weights_and_biases(rng, (inputs, outputs), outputs, std, bias)
        self.parameters = (self.W, self.b)

    def __call__(self, x, noise=None):
        image, filters = x.dimshuffle(0, "x", "x", 1), self.W.variable.dimshuffle(0, "x", "x", 1)
        y = ops.Convolution()(image, filters).dimshuffle(0, 3) + self.b.variable.dimshuffle(0, "x")
        return rectify(y) if self.relu else y

    def describe(self, shape):
        yield LayerSummary(self.kind, (self.outputs,), self.W.size + self.b.size, self.W.size)


class Dropout:
    """Inverted dropout: in training a share `rate` of the values is 0, the others are divided by 1 - rate.

    stream tells the Dropout layers of a network apart.  Source: Hinton et al. 2012; Krizhevsky et al.
    2012, section 4.2 (which halves the outputs in testing instead: the same network).
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
    """Layers one after the other.

    Layers with parameters are numbered from 1: conv1, conv2 … fc8; a layer without takes the number of
    the one before it.  Their parameters are named conv1.W, conv1.b and so on.  Inception and Auxiliary have names of
    their own, and those of their layers begin with them; an Inception counts as the two layers that it is deep.

    names  of the layers, where they are not numbered
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
        """Name -> parameters of each layer that has some: conv1, conv2 … fc8."""
        found = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            found |= layer.weight_layers if isinstance(layer, Named) else {name: layer.parameters}
        return {name: parameters for name, parameters in found.items() if parameters}

    @property
    def classifiers(self):
        """The names of the layers whose outputs are the classes: the last one, and each auxiliary classifier's."""
        towers = (layer.tower for layer in self.layers if isinstance(layer, Auxiliary))
        return tuple(list(part.weight_layers)[-1] for part in (*towers, self))

    def __call__(self, x, noise=None):
        for layer in self.layers:
            x = layer(x, noise)
        return x

    def heads(self, x, noise):
        """What training looks at: the outputs, and (weight, outputs) of each auxiliary classifier."""
        auxiliary = []
        for layer in self.layers:
            if isinstance(layer, Auxiliary):
                auxiliary.append((layer.weight, layer.tower(x, noise)))
            else:
                x = layer(x, noise)
        return x, auxiliary

    def describe(self, shape):
        """The summary of each layer for an input of `shape` (channel, row, column)."""
        for layer, name in zip(self.layers, self.names, strict=True):
            given = shape
            for row in layer.describe(shape):
                yield row if isinstance(layer, Named) else row._replace(name=name_of_row(row, layer, name))
                shape = given if isinstance(layer, Auxiliary) else row.shape


def name_of_row(row, layer, name):
    """The name of a row of a layer's summary: pool1, of conv1; as the layer's, where that is no number of its kind."""
    return row.name + name.removeprefix(layer.kind) if name.startswith(layer.kind) else name


def numbered(layers):
    """The name of each layer: its own, or its kind and the number of weight layers so far."""
    number = 0
    for layer in layers:
        if isinstance(layer, Named):
            number += layer.depth
            yield layer.name
        else:
            number += bool(layer.parameters)
            yield f"{layer.kind}{number}"


class Named:
    """What layers made of layers share: a name, with which the names of their layers begin.

    depth  as how many layers it counts
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
    """Branches of 1x1, 3x3 and 5x5 filters and of pooling on the same images, their channels one behind the other.

    channels    of x
    one         filters of 1x1
    three       (reduce, filters): 1x1 filters, and 3x3 behind them
    five        (reduce, filters): 1x1 filters, and 5x5 behind them
    projection  1x1 filters behind 3x3 max pooling

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
        )  # fmt: skip

    def __call__(self, x, noise=None):
        return pt.join(0, *(branch(x, noise) for branch in self.parts))

    def describe(self, shape):
        rows = [list(branch.describe(shape)) for branch in self.parts]
        yield from (row for branch in rows for row in branch)
        channels = sum(branch[-1].shape[0] for branch in rows)
        yield LayerSummary(self.name, (channels, *shape[1:]), 0, 0)


class Auxiliary(Named):
    """A classifier of what lies in the middle of a network, which only its training has; x goes on as it is.

    channels      of x, of 14 x 14 pixels
    classes       outputs
    dropout_rate  before the last layer
    weight        of its cost in that of training
    stream        of its Dropout

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
