"""torchvision's AlexNet, as a table: another network than that of Krizhevsky et al. 2012."""

from functools import partial

from alexnet.models.base import MODELS, Model
from alexnet.nn import Conv, Dense, Dropout, Flatten, Layer, Rng, xavier


@MODELS.register("torchvision_alexnet")
class TorchvisionAlexNet(Model):
    """One tower of Krizhevsky 2014, figure 1, as in torchvision.models.alexnet: no groups, no normalisation.

    61,100,840 parameters with 1000 classes. torchvision's adaptive average pooling to 6 x 6 pixels is the identity on
    images of 224 pixels, so the table has none. Initial weights are those of VGG16, not torchvision's.

    Source: torchvision/models/alexnet.py.
    """

    image_size = 224

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of torchvision.models.alexnet."""
        conv = partial(Conv, rng, std=xavier)
        dense = partial(Dense, rng, std=xavier, bias=0.0)
        return (
            conv(3, 64, size=11, stride=4, pad=2, pool=(3, 2)),
            conv(64, 192, size=5, pad=2, pool=(3, 2)),
            conv(192, 384, size=3, pad=1),
            conv(384, 256, size=3, pad=1),
            conv(256, 256, size=3, pad=1, pool=(3, 2)),                                   Flatten(),
            Dropout(dropout_rate),                                                        dense(9216, 4096),
            Dropout(dropout_rate),                                                        dense(4096, 4096),
            dense(4096, classes, relu=False),
        )
