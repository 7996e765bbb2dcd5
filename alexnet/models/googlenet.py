"""GoogLeNet, as a table that can be held against the paper."""

from functools import partial

from alexnet.layers import (
    LRN,
    Auxiliary,
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Inception,
    MaxPool,
    Sequential,
    xavier,
)


class GoogLeNet(Sequential):
    """Szegedy et al. 2014, table 1, in the order of Theano-MPI: pooling precedes normalisation, both times.

    rng           numpy Generator of the initial weights, or None: see alexnet.layers.weights_and_biases
    classes       outputs of the last layer and of both auxiliary classifiers
    dropout_rate  0: no dropout; another leaves the paper's 0.4, and 0.7 of the auxiliary classifiers

    13,378,280 parameters with 1000 classes, 6,998,552 of them without the auxiliary classifiers on 4a and 4d, whose
    costs count 0.3 each in training and which are not computed otherwise.  The paper normalises conv3 before it pools;
    BVLC Caffe's pooling windows begin with the first pixel, these one before it, as cuDNN's.

    Initial weights and biases, learning_rate=0.01 lr_policy=poly weight_decay=0.0002: BVLC Caffe, bvlc_googlenet.
    """

    channels = 3
    image_size = 224                                    # pixels, after cropping

    def __init__(self, rng, classes=1000, dropout_rate=0.5):
        conv = partial(Conv, rng, std=xavier, bias=0.2)
        block = partial(Inception, rng)
        auxiliary = partial(Auxiliary, rng, classes=classes, dropout_rate=0.7 if dropout_rate else 0)
        super().__init__(
            conv(3, 64, size=7, stride=2, pad=3, pool=(3, 2, 1)),                  LRN(),
            conv(64, 64, size=1),
            conv(64, 192, size=3, pad=1, pool=(3, 2, 1)),                      LRN(),
            # name, channels, 1x1, (3x3 reduce, 3x3), (5x5 reduce, 5x5), pool projection
            block("inception_3a", 192,   64,  (96, 128),  (16, 32),   32),
            block("inception_3b", 256,  128, (128, 192),  (32, 96),   64),         MaxPool(3, 2, pad=1),
            block("inception_4a", 480,  192,  (96, 208),  (16, 48),   64),         auxiliary("aux_4a", 512, stream=1),
            block("inception_4b", 512,  160, (112, 224),  (24, 64),   64),
            block("inception_4c", 512,  128, (128, 256),  (24, 64),   64),
            block("inception_4d", 512,  112, (144, 288),  (32, 64),   64),         auxiliary("aux_4d", 528, stream=2),
            block("inception_4e", 528,  256, (160, 320), (32, 128),  128),         MaxPool(3, 2, pad=1),
            block("inception_5a", 832,  256, (160, 320), (32, 128),  128),
            block("inception_5b", 832,  384, (192, 384), (48, 128),  128),         AveragePool(7, 1), Flatten(),
            Dropout(0.4 if dropout_rate else 0, 3),
            Dense(rng, 1024, classes, relu=False, std=xavier, bias=0.0),
        )  # fmt: skip
