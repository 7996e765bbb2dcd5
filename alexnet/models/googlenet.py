"""GoogLeNet of the paper and of BVLC Caffe, as tables that can be compared with their sources."""

from collections.abc import Callable
from functools import partial

from alexnet.models.base import MODELS, Model
from alexnet.models.caffenet import CaffeLRN
from alexnet.nn import LRN, AveragePool, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Rng, xavier
from alexnet.nn.inception import Inception, InceptionClassifier


@MODELS.register("googlenet")
class GoogLeNet(Model):
    """The network of Szegedy et al. 2014, table 1. As in Theano-MPI, pooling precedes both normalisations.

    dropout_rate  0 disables dropout; any other value selects the rates of the paper, 0.4 for the last layer and 0.7 for
                  the auxiliary classifiers

    With 1000 classes there are 13,378,280 parameters, of which 6,998,552 are outside the auxiliary classifiers. These
    are attached to 4a and 4d and computed only in training, where each cost has weight 0.3.

    The paper normalises conv3 before pooling. Pooling windows start one pixel before the image, as in cuDNN; those of
    BVLC Caffe start at the first pixel (bvlc_googlenet).

    Source of initial weights and biases, and of learning_rate=0.01 lr_policy=poly weight_decay=0.0002: BVLC Caffe,
    bvlc_googlenet.
    """

    image_size = 224

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of table 1."""
        conv = partial(Conv, rng, std=xavier, bias=0.2)
        pool = partial(MaxPool, 3, 2, pad=1)
        return (
            conv(3, 64, size=7, stride=2, pad=3, pool=pool()),                 LRN(),
            conv(64, 64, size=1),
            conv(64, 192, size=3, pad=1, pool=pool()),                         LRN(),
            *inception_layers(rng, classes, dropout_rate, pool),
        )


@MODELS.register("bvlc_googlenet")
class BVLCGoogLeNet(Model):
    """bvlc_googlenet of BVLC Caffe, otherwise as GoogLeNet.

    Pooling windows start at the first pixel, and their number is rounded up. The first normalisation follows pooling,
    the second precedes it, as in the paper. The normalisation has the constants of Caffe.

    Source: BVLC Caffe, models/bvlc_googlenet (train_val.prototxt).
    """

    image_size = 224

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of the prototxt."""
        conv = partial(Conv, rng, std=xavier, bias=0.2)
        pool = partial(MaxPool, 3, 2, ceil=True)
        return (
            conv(3, 64, size=7, stride=2, pad=3, pool=pool()),                 CaffeLRN(),
            conv(64, 64, size=1),
            conv(64, 192, size=3, pad=1),                                      CaffeLRN(), pool(),
            *inception_layers(rng, classes, dropout_rate, pool),
        )


def inception_layers(
    rng: Rng, classes: int, dropout_rate: float, pool: Callable[[], MaxPool]
) -> tuple[Layer, ...]:
    """Return the layers from inception 3a on.

    Args:
        pool: returns a new max pooling layer, which halves rows and columns.
    """
    block = partial(Inception, rng)
    auxiliary = partial(InceptionClassifier, rng, classes=classes, dropout_rate=0.7 if dropout_rate else 0)
    return (
        # name, channels, 1x1, (3x3 reduce, 3x3), (5x5 reduce, 5x5), pool projection
        block("inception_3a", 192,   64,  (96, 128),  (16, 32),   32),
        block("inception_3b", 256,  128, (128, 192),  (32, 96),   64),         pool(),
        block("inception_4a", 480,  192,  (96, 208),  (16, 48),   64),         auxiliary("aux_4a", 512, stream=1),
        block("inception_4b", 512,  160, (112, 224),  (24, 64),   64),
        block("inception_4c", 512,  128, (128, 256),  (24, 64),   64),
        block("inception_4d", 512,  112, (144, 288),  (32, 64),   64),         auxiliary("aux_4d", 528, stream=2),
        block("inception_4e", 528,  256, (160, 320), (32, 128),  128),         pool(),
        block("inception_5a", 832,  256, (160, 320), (32, 128),  128),
        block("inception_5b", 832,  384, (192, 384), (48, 128),  128),         AveragePool(7, 1), Flatten(),
        Dropout(0.4 if dropout_rate else 0, stream=3),
        Dense(rng, 1024, classes, relu=False, std=xavier, bias=0.0),
    )
