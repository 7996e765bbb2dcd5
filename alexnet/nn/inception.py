"""The two composite layers of GoogLeNet. Source: Szegedy et al. 2014."""

from functools import partial

from alexnet.nn.containers import Auxiliary, Concatenation, Sequential
from alexnet.nn.layers import AveragePool, Conv, Dense, Dropout, Flatten, MaxPool
from alexnet.nn.parameter import Rng, Std, xavier


class Inception(Concatenation):
    """Inception module: branches with 1x1, 3x3 and 5x5 filters and with pooling, concatenated along the channel axis.

    channels    channels of x
    one         number of 1x1 filters
    three       (reduce, filters): number of 1x1 filters, and of the 3x3 filters that follow them
    five        (reduce, filters): number of 1x1 filters, and of the 5x5 filters that follow them
    projection  number of 1x1 filters after 3x3 max pooling

    It counts as two layers, its depth. Source: Szegedy et al. 2014, figure 2b and table 1.
    """

    depth = 2

    def __init__(
        self, rng: Rng, name: str, channels: int, one: int, three: tuple[int, int], five: tuple[int, int],
        projection: int, std: Std = xavier, bias: float = 0.2,
    ) -> None:
        conv = partial(Conv, rng, std=std, bias=bias)
        at = f"{name}.{{}}".format
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


class InceptionClassifier(Auxiliary):
    """Auxiliary classifier of GoogLeNet.

    channels      channels of x, which has 14 x 14 pixels
    classes       number of outputs
    dropout_rate  rate of the Dropout before the last layer
    stream        stream of its Dropout
    weight        weight of its cost in the training cost

    Source: Szegedy et al. 2014, section 5.
    """

    def __init__(
        self, rng: Rng, name: str, channels: int, classes: int, dropout_rate: float, stream: int, weight: float = 0.3,
    ) -> None:
        tower = Sequential(
            AveragePool(5, 3),
            Conv(rng, channels, 128, size=1, std=xavier, bias=0.2),
            Flatten(),
            Dense(rng, 2048, 1024, std=xavier, bias=0.2),
            Dropout(dropout_rate, stream),
            Dense(rng, 1024, classes, relu=False, std=xavier, bias=0.0),
            names=[f"{name}.{layer}" for layer in ("average", "conv", "flatten", "fc", "dropout", "classifier")],
        )
        super().__init__(name, tower, weight)
