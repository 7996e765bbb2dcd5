"""The normalisations of the two-tower network of Krizhevsky et al. 2012, as its released code defines them.

Source: computerhistory/AlexNet-Source-Code, layer.py (NormLayerParser) and src/layer.cu (ResponseNormLayer).
"""

from collections.abc import Iterator

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from alexnet import ops
from alexnet.nn.layer import Layer, LayerSummary, Shape, Step, Training
from alexnet.nn.layers import LRN


class TowerLRN(LRN):
    """Local response normalisation of each tower separately: no window contains channels of two towers.

    alpha is divided by n, unlike that of LRN: x / (k + (alpha / n) * sum of x**2 over n channels) ** beta.

    towers  number of towers, which must divide the channels
    """

    def __init__(self, towers: int = 2, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> None:
        super().__init__(n, k, alpha / n, beta)
        self.towers = towers

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        channels = x.type.shape[0] // self.towers
        parts = (x[tower * channels : (tower + 1) * channels] for tower in range(self.towers))
        return pt.join(0, *(self.normalise(part) for part in parts))

    def steps(self) -> Iterator[Step]:
        return Layer.steps(self)                 # ONNX's LRN has no groups


class SpatialLRN(Layer):
    """Local response normalisation within a channel, over a square window around each pixel.

        y = x / (1 + scale * mean of x**2 over size x size pixels) ** 0.75

    Pixels outside the image are 0 and count in the mean.
    """

    kind = "spatial_lrn"

    def __init__(self, size: int = 5, scale: float = 1e-3) -> None:
        if size % 2 == 0:
            raise ValueError(f"the window size must be odd, got {size}")
        self.size = size
        self.scale = np.float32(scale)

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        energy = ops.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2, layout="c01b")
        root = pt.sqrt(1 + self.scale * energy)
        return x / (root * pt.sqrt(root))        # s ** 0.75, by instructions that are faster than a power

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield self.row(shape)
