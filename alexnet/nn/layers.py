"""The layers: convolution, pooling, normalisation, dense, dropout."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.builders import OpFromGraph
from pytensor.tensor.variable import TensorVariable

from alexnet import ops
from alexnet.nn.layer import (
    Layer,
    LayerSummary,
    Shape,
    Step,
    Training,
    convolution_step,
    dense_step,
    flatten_step,
    max_pool_step,
)
from alexnet.nn.parameter import Parameter, Rng, Std, draw_weights, weights_and_biases
from alexnet.ops.base import windows_along
from alexnet.ops.functional import Margins, zero_padded


def relu(x: TensorVariable) -> TensorVariable:
    """Return y = max(x, 0); NaN stays NaN. The gradient of x is that of y where y > 0, else 0.

    Written this way, the gradient depends only on y, so x can be freed. Source: Krizhevsky et al. 2012, section 3.1.
    """
    value = x.type()
    return OpFromGraph([value], [pt.maximum(value, 0)], inline=True, pullback=relu_pullback)(x)


def relu_pullback(
    inputs: Sequence[TensorVariable], outputs: Sequence[TensorVariable], cotangents: Sequence[TensorVariable]
) -> list[TensorVariable]:
    """Return the gradient of x from y and the gradient of y."""
    return [pt.switch(outputs[0] > 0, cotangents[0], np.float32(0))]


class Conv(Layer):
    """Grouped convolution (cross-correlation), then max pooling, bias and ReLU.

    x       (channels, row, column, batch)
    W       (channels / groups, size, size, filters)
    pool    max pooling: (size, stride), (size, stride, pad), or a MaxPool; None: no pooling
    bias    initial bias; None: neither bias nor ReLU, because batch normalisation follows
    relu    False: no ReLU, because normalisation precedes it (Krizhevsky's conv1)
    ceil    round the number of windows up, as cuda-convnet does: zeros complete the last window of an axis

    Pooling precedes bias and ReLU. Both are non-decreasing, so the result is bit-identical and they process a quarter
    of the values. Source: Krizhevsky et al. 2012, section 3.
    """

    kind = "conv"

    def __init__(
        self, rng: Rng, channels: int, filters: int, size: int, stride: int = 1, pad: int = 0, groups: int = 1,
        pool: "tuple[int, ...] | MaxPool | None" = None, std: Std = 0.01,
        bias: float | None = 0.0, *, relu: bool = True, ceil: bool = False,
    ) -> None:
        if channels % groups or filters % groups:
            raise ValueError(f"groups must divide channels and filters, got {groups} for {channels} and {filters}")
        self.filters = filters
        self.size = size
        self.stride = stride
        self.pad = pad
        self.groups = groups
        self.relu = relu
        self.ceil = ceil
        self.convolution = ops.Convolution(stride, pad, groups)
        self.pool = MaxPool(*pool) if isinstance(pool, tuple) else pool
        self.b: Parameter | None = None
        shape = channels // groups, size, size, filters
        if bias is None:
            self.W = draw_weights(rng, shape, std)
            self.parameters = (self.W,)
        else:
            self.W, self.b = weights_and_biases(rng, shape, filters, std, bias)
            self.parameters = (self.W, self.b)

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        y = self.convolution(self.completed(x) if self.ceil else x, self.W.variable)
        if self.pool:
            y = self.pool(y)
        if not self.b:
            return y
        y = y + self.b.variable.dimshuffle(0, "x", "x", "x")
        return relu(y) if self.relu else y

    def completed(self, x: TensorVariable) -> TensorVariable:
        """Return images with zeros after the last row and column, so that the last windows are complete."""
        margins: Margins = []
        for n in x.type.shape[1:3]:
            windows = windows_along(n, self.size, self.stride, self.pad, ceil=True)
            margins.append((0, (windows - 1) * self.stride + self.size - n - 2 * self.pad))
        return zero_padded(x, margins)

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        rows, columns = (windows_along(n, self.size, self.stride, self.pad, self.ceil) for n in shape[1:])
        convolved = (self.filters, rows, columns)
        yield self.row(convolved, macs=self.W.size * rows * columns)
        if self.pool:
            yield from self.pool.describe(convolved)

    def steps(self) -> Iterator[Step]:
        if self.ceil:
            raise NotImplementedError("a convolution with ceil=True has no form in Caffe, and none here in ONNX")
        yield convolution_step(self.filters, self.size, self.stride, self.pad, self.groups, bool(self.b))
        if self.b and self.relu:
            yield Step("Relu")
        if self.pool:
            yield from self.pool.steps()


class ReLU(Layer):
    """max(x, 0), where it does not follow a convolution or a dense layer directly."""

    kind = "relu"

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        return relu(x)

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row(shape)

    def steps(self) -> Iterator[Step]:
        yield Step("Relu")


class MaxPool(Layer):
    """Max pooling over size x size windows, `stride` pixels apart. Windows start `pad` pixels before the image.

    ceil  round the number of windows up, as Caffe does: the last window of an axis may be incomplete
    """

    kind = "pool"

    def __init__(self, size: int, stride: int, pad: int = 0, *, ceil: bool = False) -> None:
        self.size = size
        self.stride = stride
        self.pad = pad
        self.ceil = ceil

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        return ops.MaxPool2D(self.size, self.stride, self.pad, self.ceil)(x)[0]

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        windows = (windows_along(n, self.size, self.stride, self.pad, self.ceil) for n in shape[1:])
        yield self.row((shape[0], *windows))

    def steps(self) -> Iterator[Step]:
        yield max_pool_step(self.size, self.stride, self.pad, self.ceil)


class AveragePool(Layer):
    """Average pooling over size x size windows, `stride` pixels apart, without padding."""

    kind = "average"

    def __init__(self, size: int, stride: int) -> None:
        self.size = size
        self.stride = stride

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        return ops.AveragePool2D(self.size, self.stride)(x)

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row((shape[0], *(windows_along(n, self.size, self.stride) for n in shape[1:])))

    def steps(self) -> Iterator[Step]:
        yield Step("AveragePool", kernel_shape=self.size, strides=self.stride)


class LRN(Layer):
    """Local response normalisation: x / (k + alpha * sum of x**2 over n channels) ** beta.

    alpha is not divided by n (Caffe and cuDNN divide it). Source: Krizhevsky et al. 2012, section 3.3.
    """

    kind = "lrn"

    def __init__(self, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> None:
        self.normalise = ops.LocalResponseNorm(n, k, alpha, beta)

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        return self.normalise(x)

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row(shape)

    def steps(self) -> Iterator[Step]:
        op = self.normalise
        yield Step("LRN", size=op.n, bias=op.k, alpha=op.alpha * op.n, beta=op.beta)     # ONNX divides alpha by size


class BatchNorm(Layer):
    """Batch normalisation of each channel, optionally followed by ReLU.

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    In training, mean and variance are those of the batch, and the running statistics follow them:

        running <- (1 - RATE) * running + RATE * statistic of the batch, with the variance divided by n - 1

    In validation, and if the layer is frozen, mean and variance are the running statistics. N workers normalise their
    parts of a batch separately. Weight decay does not apply to gamma and beta (Goyal et al. 2017, section 5.1).

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2; PyTorch, BatchNorm2d (the running statistics).
    """

    kind = "bn"
    depth = 0
    RATE = np.float32(0.1)

    def __init__(self, channels: int, relu: bool = True, epsilon: float = 1e-5) -> None:
        self.relu = relu
        self.normalise = ops.BatchNorm2D(epsilon, relu)
        self.gamma = Parameter(np.ones(channels), "gamma", decay_mult=0.0)
        self.beta = Parameter(np.zeros(channels), "beta", decay_mult=0.0)
        self.mean = Parameter(np.zeros(channels), "mean", running=True)
        self.variance = Parameter(np.ones(channels), "variance", running=True)
        self.parameters = (self.gamma, self.beta, self.mean, self.variance)

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        if training is None or not self.mean.trainable:
            return self.normalised_by_running_statistics(x)
        y, mean, variance = self.normalise(x, self.gamma.variable, self.beta.variable)
        n = (x.size // x.shape[0]).astype("float32")
        unbiased = variance * (n / pt.maximum(n - 1, 1))
        for running, new in ((self.mean, mean), (self.variance, unbiased)):
            old = running.variable
            training.updates.append((old, old + self.RATE * (new - old)))
        return y

    def normalised_by_running_statistics(self, x: TensorVariable) -> TensorVariable:
        """Return gamma * (x - mean) / sqrt(variance + epsilon) + beta with one factor and one term per channel.

        Asynchronous updates of several workers can add up to a negative variance, which counts as 0.
        """
        variance = pt.maximum(self.variance.variable, 0) + np.float32(self.normalise.epsilon)
        factor = self.gamma.variable / pt.sqrt(variance)
        term = self.beta.variable - self.mean.variable * factor
        y = x * factor.dimshuffle(0, "x", "x", "x") + term.dimshuffle(0, "x", "x", "x")
        return relu(y) if self.relu else y

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row(shape)

    def steps(self) -> Iterator[Step]:
        names = "gamma", "beta", "mean", "variance"
        yield Step("BatchNormalization", parameters=names, epsilon=self.normalise.epsilon)
        if self.relu:
            yield Step("Relu")


class Flatten(Layer):
    """Reshape (channel, row, column, batch) to (feature, batch), with the channel as the slowest axis of feature."""

    kind = "flatten"

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        return x.reshape((math.prod(x.type.shape[:-1]), -1))

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row((math.prod(shape),))

    def steps(self) -> Iterator[Step]:
        yield flatten_step()


class Dense(Layer):
    """Fully connected layer, W'x + b, computed as the convolution of a 1 x 1 image with a 1 x 1 filter.

    x   (inputs, batch)
    W   (inputs, outputs)

    As a convolution, it runs on the same kernel and the same threads as the preceding layers.
    """

    kind = "fc"

    def __init__(
        self, rng: Rng, inputs: int, outputs: int, relu: bool = True, std: Std = 0.005, bias: float = 0.1
    ) -> None:
        self.outputs = outputs
        self.relu = relu
        self.W, self.b = weights_and_biases(rng, (inputs, outputs), outputs, std, bias)
        self.parameters = (self.W, self.b)

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        image = x.dimshuffle(0, "x", "x", 1)
        filters = self.W.variable.dimshuffle(0, "x", "x", 1)
        y = ops.Convolution()(image, filters).dimshuffle(0, 3) + self.b.variable.dimshuffle(0, "x")
        return relu(y) if self.relu else y

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row((self.outputs,), macs=self.W.size)

    def steps(self) -> Iterator[Step]:
        yield dense_step(self.outputs)
        if self.relu:
            yield Step("Relu")


class Dropout(Layer):
    """Inverted dropout. Training sets a fraction `rate` of the values to 0 and divides the others by 1 - rate.

    stream  selects the random numbers; each Dropout of a network needs a different one. None: the number of the
            preceding layer with parameters, which Sequential sets (6 after fc6)

    Source: Hinton et al. 2012; Krizhevsky et al. 2012, section 4.2 (which is equivalent, but halves the outputs in
    testing instead).
    """

    kind = "dropout"

    def __init__(self, rate: float, stream: int | None = None) -> None:
        self.rate = rate
        self.stream = stream

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        if training is None or self.rate == 0:
            return x
        if self.stream is None:
            raise ValueError("a Dropout outside a Sequential with numbered layers needs a stream")
        return ops.InvertedDropout(self.rate, self.stream)(x, training.seed, training.step)

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row(shape)

    def steps(self) -> Iterator[Step]:
        return iter(())                                # used only in training
