"""VGG-16, as a table that can be compared with the paper."""

from functools import partial

from alexnet.nn.layers import Conv, Dense, Dropout, Flatten, Sequential, xavier


class VGG16(Sequential):
    """Configuration D of Simonyan and Zisserman 2014, table 1: only 3 x 3 filters, sixteen layers with weights.

    rng           NumPy Generator for the initial weights, or None; see alexnet.nn.layers.weights_and_biases
    classes       number of outputs of the last layer
    dropout_rate  rate of the two Dropout layers

    138,357,544 parameters with 1000 classes. The authors initialised the network with the weights of a smaller trained
    network. They later found that this is unnecessary with the initialisation of Glorot and Bengio (section 3.1), which
    is used here. Each layer with ReLU halves the mean square, so grey levels around 60 become logits near 1.
    """

    channels = 3
    image_size = 224                                    # pixels, after cropping

    def __init__(self, rng, classes=1000, dropout_rate=0.5):
        conv, pool = partial(Conv, rng, size=3, pad=1, std=xavier), (2, 2)
        super().__init__(
            conv(3, 64),      conv(64, 64, pool=pool),
            conv(64, 128),    conv(128, 128, pool=pool),
            conv(128, 256),   conv(256, 256),   conv(256, 256, pool=pool),
            conv(256, 512),   conv(512, 512),   conv(512, 512, pool=pool),
            conv(512, 512),   conv(512, 512),   conv(512, 512, pool=pool),                Flatten(),
            Dense(rng, 25088, 4096, std=xavier, bias=0.0),                                Dropout(dropout_rate, 14),
            Dense(rng, 4096, 4096, std=xavier, bias=0.0),                                 Dropout(dropout_rate, 15),
            Dense(rng, 4096, classes, relu=False, std=xavier, bias=0.0),
        )
