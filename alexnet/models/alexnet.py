"""AlexNet, as a table that can be compared with the paper."""

from alexnet.nn.layers import LRN, Conv, Dense, Dropout, Flatten, Sequential


class AlexNet(Sequential):
    """The network of Krizhevsky et al. 2012, figure 2. As in theano_alexnet, pooling precedes normalisation.

    rng           NumPy Generator for the initial weights, or None; see alexnet.nn.layers.weights_and_biases
    classes       number of outputs of the last layer
    dropout_rate  rate of the two Dropout layers

    60,965,224 parameters with 1000 classes. Source: Ding et al. 2014, section 2.
    """

    channels = 3
    image_size = 227                                    # pixels, after cropping

    def __init__(self, rng, classes=1000, dropout_rate=0.5):
        super().__init__(
            Conv(rng, 3, 96, size=11, stride=4, pool=(3, 2), bias=0.0),                LRN(),
            Conv(rng, 96, 256, size=5, pad=2, groups=2, pool=(3, 2), bias=0.1),        LRN(),
            Conv(rng, 256, 384, size=3, pad=1, bias=0.0),
            Conv(rng, 384, 384, size=3, pad=1, groups=2, bias=0.1),
            Conv(rng, 384, 256, size=3, pad=1, groups=2, pool=(3, 2), bias=0.0),       Flatten(),
            Dense(rng, 9216, 4096, std=0.005, bias=0.1),                               Dropout(dropout_rate, 6),
            Dense(rng, 4096, 4096, std=0.005, bias=0.1),                               Dropout(dropout_rate, 7),
            Dense(rng, 4096, classes, relu=False, std=0.01, bias=0.0),
        )
