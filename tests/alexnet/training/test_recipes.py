"""Recipes that are off by default: the default graph is the plain one, and a run with a recipe resumes bit-exactly."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.nn import Training
from alexnet.ops import CropMirror
from alexnet.run import checkpoint_format
from alexnet.training.network import build_model, build_network
from alexnet.training.objectives import cross_entropy, top_k_error
from alexnet.training.updates import momentum_sgd
from tests import tiny

pytestmark = pytest.mark.slow

RECIPES = {
    "cosine": {"lr_policy": "cosine", "warmup_epochs": 1},
    "linear": {"lr_policy": "linear"},
    "label smoothing": {"label_smoothing": 0.1},
    "clipping": {"clip_norm": 0.05},
    "lars": {"update": "lars", "learning_rate": 0.5},
    "average": {"ema_decay": 0.9},
    "colours in the graph": {"pca_colour": 0.1},
    "colours and crops in the loader": {"pca_colour": 0.1, "random_resized_crop": 0.08, "use_data_layer": "false"},
}


def operations(function):
    return [str(node.op) for node in function.maker.fgraph.toposort()]


def cropped_in_graph():
    """Return the inputs and pixels of CropMirror for a mean image of zeros."""
    images = pt.tensor("images", shape=(3, 256, 256, None), dtype="uint8")
    rows, columns, mirrors = pt.ivector("rows"), pt.ivector("columns"), pt.vector("mirrors", dtype="uint8")
    mean = pytensor.shared(np.zeros((3, 256, 256), "float32"), shape=(3, 256, 256))
    return [images, rows, columns, mirrors], CropMirror(227)(images, mean, rows, columns, mirrors)


def cropped_by_loader():
    """Return the pixels twice: as the inputs and as the pixels."""
    pixels = pt.tensor("pixels", shape=(3, 227, 227, None), dtype="float32")
    return [pixels], pixels


@pytest.mark.parametrize(("use_data_layer", "crop"), [("false", cropped_by_loader), ("true", cropped_in_graph)])
def test_default_step_is_the_plain_graph(use_data_layer, crop):
    """Crop, cross entropy, its gradients and SGD with momentum, in plain PyTensor; no operation more."""
    config = tiny.settings("none", "none", backend="numpy", use_data_layer=use_data_layer)
    network = build_network(config, build_model(config, 3), np.zeros((3, 256, 256)))
    model = build_model(config, 3)
    step = pytensor.shared(np.int64(0))
    images, pixels = crop()
    labels = pt.ivector("labels")
    rate = pt.scalar("rate", dtype="float32")
    logits, _ = model.training_outputs(pixels, Training(np.int64(config.random_seed), step))
    cost = cross_entropy(logits, labels)
    pairs, _ = momentum_sgd(model.parameters, pytensor.grad(cost, [p.variable for p in model.parameters]), rate)
    inputs = [pytensor.In(variable, borrow=True) for variable in (*images, labels, rate)]
    outputs = [cost, top_k_error(logits, labels, 1)]
    plain = pytensor.function(inputs, outputs, updates=[*pairs, (step, step + 1)], mode=mode_of("numpy"))
    assert operations(network.train) == operations(plain)


# ---- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make 24 images: 6 batches of 4."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", validation=4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_resume_is_bit_exact(data, tmp_path, recipe):
    changes = RECIPES[recipe] | {"n_iterations": 10, "para_load": "false", "backend": "numpy"}
    straight = tiny.run(
        data, tmp_path, snapshot_iterations=4, run_name="straight", keep_snapshots="null", **changes
    )
    fourth = checkpoint_format.snapshot_path(straight, 4)
    resumed = tiny.run(data, tmp_path, run_name="resumed", resume_train=fourth, **changes)
    expected, found = tiny.final(straight), tiny.final(resumed)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
