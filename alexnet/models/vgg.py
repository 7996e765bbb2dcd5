"""VGG-16, as a table that can be compared with the paper."""

from functools import partial

from alexnet.models.base import MODELS, Model
from alexnet.nn import Conv, Dense, Dropout, Flatten, Layer, Rng, xavier


@MODELS.register("vgg16")
class VGG16(Model):
    """Configuration D of Simonyan and Zisserman 2014, table 1: only 3 x 3 filters, sixteen layers with weights.

    138,357,544 parameters with 1000 classes. The authors initialised the network with the weights of a smaller trained
    network. They later found that this is unnecessary with the initialisation of Glorot and Bengio (section 3.1), which
    is used here. Each layer with ReLU halves the mean square, so grey levels around 60 become logits near 1.
    """

    image_size = 224

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of configuration D."""
        conv = partial(Conv, rng, size=3, pad=1, std=xavier)
        pool = (2, 2)
        return (
            conv(3, 64),      conv(64, 64, pool=pool),
            conv(64, 128),    conv(128, 128, pool=pool),
            conv(128, 256),   conv(256, 256),   conv(256, 256, pool=pool),
            conv(256, 512),   conv(512, 512),   conv(512, 512, pool=pool),
            conv(512, 512),   conv(512, 512),   conv(512, 512, pool=pool),                Flatten(),
            Dense(rng, 25088, 4096, std=xavier, bias=0.0),                                Dropout(dropout_rate),
            Dense(rng, 4096, 4096, std=xavier, bias=0.0),                                 Dropout(dropout_rate),
            Dense(rng, 4096, classes, relu=False, std=xavier, bias=0.0),
        )
