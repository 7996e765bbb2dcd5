"""The two AlexNet variants for which Caffe published weights, as tables.

They differ from AlexNet in the constants of the normalisation and in initial biases, BVLCAlexNet also in layer order.

Caffe's normalisation is x / (1 + (alpha / n) * sum)**beta; theano_alexnet's is x / (2 + alpha * sum)**beta.

Source: BVLC Caffe, models/bvlc_reference_caffenet and models/bvlc_alexnet (train_val.prototxt).
"""

from functools import partial

from alexnet.models.base import MODELS, Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Rng

CaffeLRN = partial(LRN, n=5, k=1.0, alpha=1e-4 / 5, beta=0.75)


@MODELS.register("caffenet")
class CaffeNet(Model):
    """bvlc_reference_caffenet: pooling precedes normalisation."""

    image_size = 227

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of the prototxt."""
        return (
            Conv(rng, 3, 96, size=11, stride=4, pool=(3, 2), bias=0.0),                CaffeLRN(),
            Conv(rng, 96, 256, size=5, pad=2, groups=2, pool=(3, 2), bias=1.0),        CaffeLRN(),
            Conv(rng, 256, 384, size=3, pad=1, bias=0.0),
            Conv(rng, 384, 384, size=3, pad=1, groups=2, bias=1.0),
            Conv(rng, 384, 256, size=3, pad=1, groups=2, pool=(3, 2), bias=1.0),       Flatten(),
            Dense(rng, 9216, 4096, std=0.005, bias=1.0),                               Dropout(dropout_rate),
            Dense(rng, 4096, 4096, std=0.005, bias=1.0),                               Dropout(dropout_rate),
            Dense(rng, 4096, classes, relu=False, std=0.01, bias=0.0),
        )


@MODELS.register("bvlc_alexnet")
class BVLCAlexNet(Model):
    """bvlc_alexnet: normalisation precedes pooling, as in Krizhevsky et al. 2012, section 3.5."""

    image_size = 227

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of the prototxt."""
        return (
            Conv(rng, 3, 96, size=11, stride=4, bias=0.0),                    CaffeLRN(), MaxPool(3, 2),
            Conv(rng, 96, 256, size=5, pad=2, groups=2, bias=0.1),            CaffeLRN(), MaxPool(3, 2),
            Conv(rng, 256, 384, size=3, pad=1, bias=0.0),
            Conv(rng, 384, 384, size=3, pad=1, groups=2, bias=0.1),
            Conv(rng, 384, 256, size=3, pad=1, groups=2, pool=(3, 2), bias=0.1),       Flatten(),
            Dense(rng, 9216, 4096, std=0.005, bias=0.1),                               Dropout(dropout_rate),
            Dense(rng, 4096, 4096, std=0.005, bias=0.1),                               Dropout(dropout_rate),
            Dense(rng, 4096, classes, relu=False, std=0.01, bias=0.0),
        )
