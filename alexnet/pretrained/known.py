"""Name well-known networks that are not supported, for error messages."""

from collections.abc import Sequence

FILTERS: dict[tuple[int, ...], str] = {          # filters of each convolution -> name
    (96, 256, 512, 512, 512): "ZFNet-512",
}
# (convolutions, dense layers, filters of the first convolution, batch normalisation) -> name.
# Source: the networks in torchvision.models, in Caffe's and in ONNX's model zoo.
NETWORKS = {
    (8, 3, 64, False): "VGG-11", (10, 3, 64, False): "VGG-13", (16, 3, 64, False): "VGG-19",
    (8, 3, 64, True): "VGG-11 with batch normalisation", (10, 3, 64, True): "VGG-13 with batch normalisation",
    (13, 3, 64, True): "VGG-16 with batch normalisation", (16, 3, 64, True): "VGG-19 with batch normalisation",
    (12, 0, 96, False): "Network in Network",
    (20, 1, 64, True): "ResNet-18", (36, 1, 64, True): "ResNet-34", (53, 1, 64, True): "ResNet-50",
    (104, 1, 64, True): "ResNet-101", (155, 1, 64, True): "ResNet-152",
    (26, 0, 64, False): "SqueezeNet 1.1",
    (57, 1, 64, True): "GoogLeNet with batch normalisation", (69, 1, 64, True): "Inception v2",
    (120, 1, 64, True): "DenseNet-121", (121, 0, 64, True): "DenseNet-121",
    (160, 1, 96, True): "DenseNet-161", (161, 0, 96, True): "DenseNet-161",
    (168, 1, 64, True): "DenseNet-169", (169, 0, 64, True): "DenseNet-169",
    (200, 1, 64, True): "DenseNet-201", (201, 0, 64, True): "DenseNet-201",
    (27, 1, 32, True): "MobileNet", (28, 0, 32, True): "MobileNet",
    (52, 1, 32, True): "MobileNet v2", (53, 0, 32, True): "MobileNet v2",
    (49, 1, 24, True): "ShuffleNet",
}


def known_network(filters: Sequence[int], dense: int, batch_norm: bool) -> str | None:
    """Return the name of an unsupported network, or None if it is unknown.

    Args:
        filters: number of filters of each convolution, in order.
        dense: number of dense layers.
        batch_norm: whether the network has batch normalisation.
    """
    if not filters:
        return None
    return FILTERS.get(tuple(filters)) or NETWORKS.get((len(filters), dense, filters[0], batch_norm))
