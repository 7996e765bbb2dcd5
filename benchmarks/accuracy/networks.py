"""A small AlexNet, and the same network with one property changed.

It has AlexNet's kinds of layers, and a training step of an image needs 1/200 of AlexNet's arithmetic. The
stride of conv1 is chosen so that pooling windows of 3 x 3 and 2 x 2 pixels give outputs of the same size.
"""

from functools import partial

from alexnet.models import Model
from alexnet.nn import LRN, BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, ReLU, Rng, he
from alexnet.nn.towers import SpatialLRN, TowerLRN


class Small(Model):
    """The baseline, with theano_alexnet's order of layers, groups and initial biases.

    groups  of conv2 and conv4
    bias    initial value of the biases that are 0.1 in theano_alexnet
    pool    window and stride of max pooling
    """

    image_size = 216
    groups = 2
    bias = 0.1
    pool = (3, 2)

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        conv = partial(Conv, rng, size=3, pad=1, std=0.05)
        dense = partial(Dense, rng, std=0.03)
        return (
            *self.first(partial(Conv, rng, 3, 16, size=11, stride=11, std=0.01, bias=0.0)),      # 16 x 9 x 9
            *self.second(partial(
                Conv, rng, 16, 32, size=5, pad=2, groups=self.groups, std=0.03, bias=self.bias)),  # 32 x 4 x 4
            conv(32, 48, bias=0.0),
            conv(48, 32, groups=self.groups, bias=self.bias),       Flatten(),
            dense(512, 256, bias=self.bias),                        Dropout(dropout_rate),
            dense(256, 256, bias=self.bias),                        Dropout(dropout_rate),
            dense(256, classes, relu=False, std=0.01, bias=0.0),
        )

    def first(self, conv1: partial[Conv]) -> tuple[Layer, ...]:
        """Return conv1, its pooling and its normalisation, in order."""
        return conv1(pool=self.pool), self.lrn()

    def second(self, conv2: partial[Conv]) -> tuple[Layer, ...]:
        """Return conv2, its pooling and its normalisation, in order."""
        return conv2(pool=self.pool), self.lrn()

    def lrn(self) -> Layer:
        return LRN()


class OneGroup(Small):
    """Every filter of conv2 and conv4 has all channels as input, as in torchvision."""

    groups = 1


class WithoutLRN(Small):
    """No normalisation, as in torchvision."""

    def first(self, conv1: partial[Conv]) -> tuple[Layer, ...]:
        return (conv1(pool=self.pool),)

    def second(self, conv2: partial[Conv]) -> tuple[Layer, ...]:
        return (conv2(pool=self.pool),)


class CaffeLRN(Small):
    """Caffe's constants: 1 + 2e-5 of the sum, instead of 2 + 1e-4."""

    def lrn(self) -> Layer:
        return LRN(k=1.0, alpha=2e-5)


class TowersLRN(Small):
    """Each of two towers is normalised separately, as in the release, with the constants of the baseline."""

    def lrn(self) -> Layer:
        return TowerLRN(alpha=5e-4)                      # TowerLRN divides it by 5


class NormaliseThenPool(Small):
    """ReLU, normalise, pool: the paper, and Caffe's AlexNet."""

    def first(self, conv1: partial[Conv]) -> tuple[Layer, ...]:
        return conv1(), self.lrn(), MaxPool(*self.pool)

    def second(self, conv2: partial[Conv]) -> tuple[Layer, ...]:
        return conv2(), self.lrn(), MaxPool(*self.pool)


class NormaliseBeforeReLU(NormaliseThenPool):
    """After conv1: normalise, pool, ReLU, as in the release."""

    def first(self, conv1: partial[Conv]) -> tuple[Layer, ...]:
        return conv1(relu=False), self.lrn(), MaxPool(*self.pool), ReLU()


class WithinChannels(NormaliseThenPool):
    """After conv2, a second normalisation within each channel, as in the release."""

    def second(self, conv2: partial[Conv]) -> tuple[Layer, ...]:
        return conv2(), self.lrn(), SpatialLRN(), MaxPool(*self.pool)


class WithoutOverlap(Small):
    """Pooling windows of 2 x 2 pixels, which do not overlap."""

    pool = (2, 2)


class BiasesOne(Small):
    """Initial biases of 1, as in the paper, the release and CaffeNet."""

    bias = 1.0


class BiasesZero(Small):
    """All initial biases are 0."""

    bias = 0.0


class BatchNormalised(Model):
    """The same layers with batch normalisation instead of local response normalisation, placed as in alexnet_bn."""

    image_size = 216

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        conv = partial(Conv, rng, size=3, pad=1, std=he)
        return (
            Conv(rng, 3, 16, size=11, stride=11, pool=(3, 2), std=0.002),   BatchNorm(16, relu=False),
            conv(16, 32, size=5, pad=2, groups=2, pool=(3, 2)),             BatchNorm(32, relu=False),
            conv(32, 48),                                                   BatchNorm(48, relu=False),
            conv(48, 32, groups=2),                                         Flatten(),
            Dense(rng, 512, 256, std=he),                                   Dropout(dropout_rate),
            Dense(rng, 256, 256, std=he),                                   Dropout(dropout_rate),
            Dense(rng, 256, classes, relu=False, std=0.01),
        )
