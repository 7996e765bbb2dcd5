"""ResNet-50, as a table that can be compared with the paper."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

from alexnet.models.base import MODELS, Model
from alexnet.nn import AveragePool, BatchNorm, Conv, Dense, Flatten, Layer, MaxPool, Rng, he
from alexnet.nn.residual import Bottleneck


@MODELS.register("resnet50")
class ResNet50(Model):
    """The network of He et al. 2016, table 1: 25,557,032 parameters with 1000 classes, and no dropout.

    The first 1x1 filters of a stage have its stride, as in the authors' release for Caffe. Pooling windows start one
    pixel before the image; those of the release start at the first pixel and are rounded up.

    Source of initial weights, and of learning_rate=0.1 weight_decay=0.0001 for batches of 256 images: He et al. 2016,
    section 3.4.
    """

    image_size = 224
    stride_in_3x3: ClassVar[bool] = False

    def table(self, rng: Rng, classes: int, dropout_rate: float) -> tuple[Layer, ...]:
        """Return the layers of table 1."""
        stage = partial(bottlenecks, rng, stride_in_3x3=self.stride_in_3x3)
        return (
            Conv(rng, 3, 64, size=7, stride=2, pad=3, std=he, bias=None),      BatchNorm(64), MaxPool(3, 2, pad=1),
            # name, blocks, channels, width, stride
            *stage("conv2", 3,   64,  64, 1),
            *stage("conv3", 4,  256, 128, 2),
            *stage("conv4", 6,  512, 256, 2),
            *stage("conv5", 3, 1024, 512, 2),         AveragePool(7, 1), Flatten(),
            Dense(rng, 2048, classes, relu=False, std=0.01, bias=0.0),
        )


@MODELS.register("torchvision_resnet50")
class TorchvisionResNet50(ResNet50):
    """The ResNet-50 in torchvision, also called v1.5: the 3x3 filters have the stride of a stage."""

    stride_in_3x3 = True


def bottlenecks(
    rng: Rng, name: str, blocks: int, channels: int, width: int, stride: int, stride_in_3x3: bool
) -> Iterator[Bottleneck]:
    """Yield the blocks of a stage: conv2.1, conv2.2 and so on; the first has the stride."""
    for number in range(1, blocks + 1):
        yield Bottleneck(rng, f"{name}.{number}", channels, width, stride, stride_in_3x3)
        channels, stride = 4 * width, 1
