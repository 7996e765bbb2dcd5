"""The network of Krizhevsky et al. 2012 as the authors trained it, as a table that can be compared with their files."""

from functools import partial

from alexnet.models.base import MODELS, Model
from alexnet.nn import Conv, Dense, Dropout, Flatten, Layer, MaxPool, ReLU, Rng
from alexnet.nn.towers import SpatialLRN, TowerLRN


@MODELS.register("krizhevsky2012")
class Krizhevsky2012(Model):
    """Layer definition 145 of the released code: 60,965,224 parameters with 1000 classes.

    Its notes report the errors of the paper's "1 CNN": 40.7 % top-1 and 18.2 % top-5 (ILSVRC 2012, ten crops). Two
    towers of half the channels exchange activations only before conv3 and the dense layers: conv2, conv4 and conv5 have
    groups=2, and each tower is normalised separately. The definition differs from the paper in four points:

    - conv1 is normalised before its ReLU; the paper normalises after it.
    - conv2 has a second normalisation, within each channel, which the paper does not mention.
    - alpha is divided by n: 2e-5 instead of 1e-4.
    - Initial weights of conv3, conv4 and conv5 have a standard deviation of 0.03; the paper states 0.01 for all layers.

    Images have 224 x 224 pixels. The last windows of conv1 extend three pixels beyond them, where the values are 0.

    Source: computerhistory/AlexNet-Source-Code, layers/layers-145.cfg and layer-params-145.cfg; layer.py (windows).
    """

    image_size = 224

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of the definition; each pair of layers, such as conv1a and conv1b, is one layer."""
        conv = partial(Conv, rng, size=3, pad=1, std=0.03)
        dense = partial(Dense, rng, std=0.01)
        return (
            Conv(rng, 3, 96, size=11, stride=4, std=0.01, bias=0.0, relu=False, ceil=True),
            TowerLRN(),                                                       MaxPool(3, 2), ReLU(),
            Conv(rng, 96, 256, size=5, pad=2, groups=2, std=0.01, bias=1.0),
            TowerLRN(), SpatialLRN(),                                         MaxPool(3, 2),
            conv(256, 384, bias=0.0),
            conv(384, 384, groups=2, bias=1.0),
            conv(384, 256, groups=2, bias=1.0, pool=(3, 2)),                  Flatten(),
            dense(9216, 4096, bias=1.0),                                      Dropout(dropout_rate),
            dense(4096, 4096, bias=1.0),                                      Dropout(dropout_rate),
            dense(4096, classes, relu=False, bias=0.0),
        )
