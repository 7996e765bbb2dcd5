"""AlexNet, as a table that can be compared with the paper."""

from alexnet.models.base import MODELS, Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten, Layer, Rng


@MODELS.register("alexnet")
class AlexNet(Model):
    """The network of Krizhevsky et al. 2012, figure 2. As in theano_alexnet, pooling precedes normalisation.

    60,965,224 parameters with 1000 classes. Source: Ding et al. 2014, section 2.
    """

    image_size = 227

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of the paper."""
        return (
            Conv(rng, 3, 96, size=11, stride=4, pool=(3, 2), bias=0.0),                LRN(),
            Conv(rng, 96, 256, size=5, pad=2, groups=2, pool=(3, 2), bias=0.1),        LRN(),
            Conv(rng, 256, 384, size=3, pad=1, bias=0.0),
            Conv(rng, 384, 384, size=3, pad=1, groups=2, bias=0.1),
            Conv(rng, 384, 256, size=3, pad=1, groups=2, pool=(3, 2), bias=0.0),       Flatten(),
            Dense(rng, 9216, 4096, std=0.005, bias=0.1),                               Dropout(dropout_rate),
            Dense(rng, 4096, 4096, std=0.005, bias=0.1),                               Dropout(dropout_rate),
            Dense(rng, 4096, classes, relu=False, std=0.01, bias=0.0),
        )
