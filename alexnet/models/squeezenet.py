"""SqueezeNet 1.0, as a table that can be compared with the paper."""

from functools import partial
from typing import ClassVar

from alexnet.models.base import MODELS, Model
from alexnet.nn import AveragePool, Conv, Dropout, Flatten, Layer, MaxPool, Rng, xavier
from alexnet.nn.fire import Fire


@MODELS.register("squeezenet")
class SqueezeNet(Model):
    """The network of Iandola et al. 2016, table 1: 1,248,424 parameters with 1000 classes.

    Its last convolution has a filter per class, and the mean over all positions is the output of the class. The number
    of pooling windows is rounded up, as in Caffe; with 227 pixels, all windows are inside the image.

    Source of initial weights and biases, and of learning_rate=0.04 lr_policy=poly lr_power=1 weight_decay=0.0002:
    DeepScale, SqueezeNet_v1.0 (train_val.prototxt, solver.prototxt), for batches of 512 images.
    """

    image_size = 227
    conv10_pad: ClassVar[int] = 0

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of table 1."""
        fire = partial(Fire, rng)
        pool = partial(MaxPool, 3, 2, ceil=True)
        return (
            Conv(rng, 3, 96, size=7, stride=2, pool=pool(), std=xavier),
            # name, channels, squeeze, expand
            fire("fire2",  96, 16,  64),
            fire("fire3", 128, 16,  64),
            fire("fire4", 128, 32, 128),    pool(),
            fire("fire5", 256, 32, 128),
            fire("fire6", 256, 48, 192),
            fire("fire7", 384, 48, 192),
            fire("fire8", 384, 64, 256),    pool(),
            fire("fire9", 512, 64, 256),    Dropout(dropout_rate),
            Conv(rng, 512, classes, size=1, pad=self.conv10_pad, std=0.01),
            AveragePool(13 + 2 * self.conv10_pad, 1),             Flatten(),
        )


@MODELS.register("deepscale_squeezenet")
class DeepScaleSqueezeNet(SqueezeNet):
    """SqueezeNet_v1.0 as DeepScale published it for Caffe: conv10 pads its input by one pixel.

    The mean of 15 x 15 positions includes a border on which the outputs of conv10 are its biases.
    """

    conv10_pad = 1
