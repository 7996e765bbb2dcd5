"""A network with AlexNet's kinds of layers and a thousandth of its work, and one that compiles in half the time."""

from alexnet.models import Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten


class Small(Model):
    """Two convolutions and two dense layers."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=11, stride=8, pool=(3, 2)), LRN(),                      # 4 x 13 x 13
            Conv(rng, 4, 6, size=3, stride=2, pad=1, groups=2, bias=0.1), Flatten(),     # 6 x 7 x 7
            Dense(rng, 294, 8), Dropout(dropout_rate),
            Dense(rng, 8, classes, relu=False, std=0.01, bias=0.0),
        )


class Linear(Model):
    """One convolution and one dense layer."""

    image_size = 64

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=8, stride=8), Flatten(),                                # 4 x 8 x 8
            Dense(rng, 256, classes, relu=False, std=0.01, bias=0.0),
        )
