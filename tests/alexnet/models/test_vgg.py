"""VGG-16 matches configuration D of the paper: parameters and shapes."""

import numpy as np
import pytest

from alexnet.models.vgg import VGG16
from alexnet.nn import weights_and_biases, xavier

TABLE = [(64, 224), (64, 224), (128, 112), (128, 112), *[(256, 56)] * 3, *[(512, 28)] * 3, *[(512, 14)] * 3]


def test_table_is_configuration_d():
    model = VGG16(None)
    rows = {row.name: row for row in model.describe((3, 224, 224))}
    assert [rows[f"conv{n}"].shape for n in range(1, 14)] == [(filters, side, side) for filters, side in TABLE]
    assert [rows[f"fc{n}"].shape for n in (14, 15, 16)] == [(4096,), (4096,), (1000,)]
    assert sum(row.parameters for row in rows.values()) == 138_357_544
    assert sum(parameter.size for parameter in model.parameters) == 138_357_544
    assert all(layer.size == 3 and layer.pad == 1 for layer in model.layers if layer.kind == "conv")


def test_initial_weights_have_xavier_spread():
    """W has standard deviation (inputs per sum) ** -1/2 (Glorot and Bengio 2010, as Caffe's xavier)."""
    W, _ = weights_and_biases(np.random.default_rng(0), (64, 3, 3, 100), 100, xavier, 0.0)
    assert W.variable.get_value().std() == pytest.approx(576**-0.5, rel=0.02)
