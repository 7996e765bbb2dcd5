"""AlexNet with few channels, for the tests of file formats: the same layers and groups, a thousandth of the weights."""

import numpy as np
import pytest

from alexnet.models import MODELS, Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten
from alexnet.pretrained import Weights
from alexnet.pretrained.weights import shapes


class Narrow(Model):
    """theano_alexnet's network with few channels."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=11, stride=4, pool=(3, 2)),                LRN(),
            Conv(rng, 4, 6, size=5, pad=2, groups=2, pool=(3, 2)),          LRN(),
            Conv(rng, 6, 8, size=3, pad=1),
            Conv(rng, 8, 6, size=3, pad=1, groups=2),
            Conv(rng, 6, 4, size=3, pad=1, groups=2, pool=(3, 2)),          Flatten(),
            Dense(rng, 144, 12),                                            Dropout(dropout_rate),
            Dense(rng, 12, 12),                                             Dropout(dropout_rate),
            Dense(rng, 12, classes, relu=False),
        )


@pytest.fixture
def narrow(monkeypatch):
    """Replace alexnet by the narrow network."""
    monkeypatch.setitem(MODELS, "alexnet", Narrow)


def weights_of_narrow(classes=10, mean=True, **others):
    """Return Weights with random values; requires the fixture `narrow`."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, dtype="float32") for name, shape in shapes("alexnet", classes).items()}
    image = np.linspace(0, 255, 3 * 256 * 256, dtype="float32").reshape(3, 256, 256) if mean else None
    return Weights("alexnet", arrays, image, **others)


def same_bits(arrays, others):
    """Return whether two mappings hold the same names, shapes and bytes."""
    return arrays.keys() == others.keys() and all(
        arrays[name].shape == others[name].shape and arrays[name].tobytes() == others[name].tobytes()
        for name in arrays
    )
