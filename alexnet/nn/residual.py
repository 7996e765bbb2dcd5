"""The composite layers of ResNet. Source: He et al. 2016."""

from collections.abc import Iterator
from functools import partial

from pytensor.tensor.variable import TensorVariable

from alexnet.nn.containers import Named, Sequential
from alexnet.nn.layer import Chain, LayerSummary, Shape, Step, Training
from alexnet.nn.layers import BatchNorm, Conv, relu
from alexnet.nn.parameter import Rng, he


class Residual(Named):
    """ReLU of the sum of two branches on the same input.

    body      the layers of the residual function
    shortcut  a projection; without layers it is the identity

    Source: He et al. 2016, equations 1 and 2.
    """

    def __init__(self, name: str, body: Sequential, shortcut: Sequential) -> None:
        super().__init__(name, body, shortcut)
        self.body = body
        self.shortcut = shortcut

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        return relu(self.body(x, training) + self.shortcut(x, training))

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield from self.shortcut.describe(shape)
        for row in self.body.describe(shape):
            yield row
        yield LayerSummary(self.name, row.shape, 0, 0)

    def named_steps(self) -> Chain:
        branches = self.body.named_steps(), self.shortcut.named_steps()
        return [(self.name, Step("Add", branches=branches)), (self.name, Step("Relu"))]


class Bottleneck(Residual):
    """1x1 filters that reduce the channels, 3x3 filters, 1x1 filters that restore them, and a shortcut.

    channels        channels of x
    width           number of the 1x1 filters that reduce, and of the 3x3 filters; the output has 4 * width channels
    stride          halves rows and columns if it is 2
    stride_in_3x3   whether the 3x3 filters have the stride; False: the first 1x1 filters have it

    The shortcut is a projection if the number of channels changes. A block counts as three layers.

    Source: He et al. 2016, figure 5 and table 1.
    """

    depth = 3

    def __init__(
        self, rng: Rng, name: str, channels: int, width: int, stride: int = 1, stride_in_3x3: bool = False
    ) -> None:
        conv = partial(Conv, rng, std=he, bias=None)
        first, second = (1, stride) if stride_in_3x3 else (stride, 1)
        outputs = 4 * width
        names = [f"{name}.{layer}" for layer in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")]
        body = Sequential(
            conv(channels, width, 1, first),          BatchNorm(width),
            conv(width, width, 3, second, pad=1),     BatchNorm(width),
            conv(width, outputs, 1),                  BatchNorm(outputs, relu=False),
            names=names,
        )
        shortcut = Sequential()
        if channels != outputs:
            projection = conv(channels, outputs, 1, stride), BatchNorm(outputs, relu=False)
            shortcut = Sequential(*projection, names=(f"{name}.projection", f"{name}.projection_bn"))
        super().__init__(name, body, shortcut)
