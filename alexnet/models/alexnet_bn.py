"""AlexNet with batch normalisation instead of local response normalisation, on which LARS was first tested.

The authors' Caffe network scales the pixels by 1/256, which the initial weights of the first layer do here. The weight
decay of that layer is therefore weaker. Its batch normalisation has neither gamma nor beta, so they remain 1 and 0.

Source: You et al. 2017, "Large batch training of convolutional networks"; models/alexnet_bn of an author's Caffe
(train_val2.prototxt in borisgin/nvcaffe).
"""

from alexnet.models.base import MODELS, Model
from alexnet.nn import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, Rng

PIXEL_SCALE = 1 / 256


def normalisation(channels: int) -> BatchNorm:
    """Return batch normalisation without ReLU, gamma and beta."""
    layer = BatchNorm(channels, relu=False, epsilon=1e-4)
    layer.gamma.trainable = layer.beta.trainable = False
    return layer


@MODELS.register("alexnet_bn")
class AlexNetBN(Model):
    """AlexNet-BN: convolution, ReLU, pooling, normalisation."""

    image_size = 227

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of the prototxt."""
        return (
            Conv(rng, 3, 96, size=11, stride=4, pool=(3, 2), std=0.01 * PIXEL_SCALE, bias=0.01), normalisation(96),
            Conv(rng, 96, 256, size=5, pad=2, groups=2, pool=(3, 2), bias=0.01),                 normalisation(256),
            Conv(rng, 256, 384, size=3, pad=1, bias=0.01),                                       normalisation(384),
            Conv(rng, 384, 384, size=3, pad=1, groups=2, bias=0.01),                             normalisation(384),
            Conv(rng, 384, 256, size=3, pad=1, groups=2, pool=(3, 2), bias=0.01),                Flatten(),
            Dense(rng, 9216, 4096, std=0.005, bias=0.1),                                         Dropout(dropout_rate),
            Dense(rng, 4096, 4096, std=0.005, bias=0.1),                                         Dropout(dropout_rate),
            Dense(rng, 4096, classes, relu=False, std=0.01, bias=0.01),
        )
