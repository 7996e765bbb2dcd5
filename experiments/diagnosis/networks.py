"""Small networks with AlexNet's kinds of layers: 80,000 parameters, a few milliseconds for a step of 16 images."""

from alexnet.models import Model
from alexnet.nn import LRN, BatchNorm, Conv, Dense, Dropout, Flatten, he


class Healthy(Model):
    """Two convolutions and two dense layers, with initial values that preserve the variance."""

    image_size = 227
    first = 0.002                                # pixels have a standard deviation of about 60
    std = staticmethod(he)
    bias = 0.0

    def table(self, rng, classes, dropout_rate):
        std, bias = self.std, self.bias
        return (
            Conv(rng, 3, 16, size=11, stride=8, pool=(3, 2), std=self.first, bias=bias), LRN(),        # 16 x 13 x 13
            Conv(rng, 16, 32, size=3, pad=1, groups=2, pool=(3, 2), std=std, bias=bias), Flatten(),    # 32 x 6 x 6
            Dense(rng, 1152, 64, std=std, bias=bias),                                    Dropout(dropout_rate),
            Dense(rng, 64, classes, relu=False, std=0.01, bias=0.0),
        )


class Normalised(Model):
    """The same with batch normalisation."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 16, size=11, stride=8, pool=(3, 2), std=he, bias=None), BatchNorm(16),
            Conv(rng, 16, 32, size=3, pad=1, pool=(3, 2), std=he, bias=None),    BatchNorm(32), Flatten(),
            Dense(rng, 1152, 64, std=he, bias=0.0),                              Dropout(dropout_rate),
            Dense(rng, 64, classes, relu=False, std=0.01, bias=0.0),
        )


class Krizhevsky(Healthy):
    """AlexNet's initial values: a standard deviation of 0.01, with which the cost first stays at that of guessing."""

    first = std = 0.01


class Deep(Model):
    """Six convolutions, with initial values that preserve the variance."""

    image_size = 227
    first = 0.002
    std = staticmethod(he)

    def table(self, rng, classes, dropout_rate):
        convolutions = [Conv(rng, 16, 16, size=3, pad=1, std=self.std) for _ in range(4)]
        return (
            Conv(rng, 3, 16, size=11, stride=8, pool=(3, 2), std=self.first),
            *convolutions,
            Conv(rng, 16, 32, size=3, pad=1, pool=(3, 2), std=self.std), Flatten(),
            Dense(rng, 1152, 64, std=self.std, bias=0.0),                Dropout(dropout_rate),
            Dense(rng, 64, classes, relu=False, std=0.01, bias=0.0),
        )


class TooSmall(Healthy):
    """Initial values whose products vanish."""

    first = std = 1e-4


class DeepTooSmall(Deep):
    """Initial values whose products vanish after some layers."""

    std = 0.01


class TooLarge(Healthy):
    """Initial values with which the softmax is saturated before the first step."""

    def table(self, rng, classes, dropout_rate):
        *layers, last = super().table(rng, classes, dropout_rate)
        return *layers, Dense(rng, 64, classes, relu=False, std=3.0, bias=0.0)


class Dead(Healthy):
    """Biases that no image of the first layers exceeds."""

    bias = -1e4


class DeadDense(Healthy):
    """A dense layer whose units are off for every image."""

    def table(self, rng, classes, dropout_rate):
        *layers, _, dropout, last = super().table(rng, classes, dropout_rate)
        return *layers, Dense(rng, 1152, 64, std=he, bias=-1e4), dropout, last
