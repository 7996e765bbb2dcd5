"""SqueezeNet matches the paper's table and PyTorch's outputs and gradients; its export matches onnxruntime."""

import numpy as np
import pytest

from alexnet.models.squeezenet import SqueezeNet
from alexnet.native import compiler
from alexnet.nn import Dropout
from alexnet.pretrained import Weights, load, save
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from tests.small_alexnet import same_bits

OUTPUTS = {                                      # Iandola et al. 2016, table 1, for images of 227 pixels
    "conv1": (96, 111, 111), "pool1": (96, 55, 55), "fire2": (128, 55, 55), "fire3": (128, 55, 55),
    "fire4": (256, 55, 55), "pool4": (256, 27, 27), "fire5": (256, 27, 27), "fire6": (384, 27, 27),
    "fire7": (384, 27, 27), "fire8": (512, 27, 27), "pool8": (512, 13, 13), "fire9": (512, 13, 13),
    "conv10": (1000, 13, 13), "average10": (1000, 1, 1),
}


def test_table_matches_the_paper():
    model = SqueezeNet(None)
    rows = {row.name: row for row in model.describe((3, 227, 227))}
    assert {name: rows[name].shape for name in OUTPUTS} == OUTPUTS
    assert sum(row.parameters for row in rows.values()) == sum(p.size for p in model.parameters) == 1_248_424
    assert model.classifiers == ("conv10",)
    assert [layer.stream for layer in model.layers if isinstance(layer, Dropout)] == [9]


@pytest.fixture(scope="module")
def network():
    """Return a Network of four classes, images and labels."""
    if not compiler.compiler_available():
        pytest.skip("the cpu backend needs a C compiler")
    rng = np.random.default_rng(3)
    model = SqueezeNet(rng, classes=4, dropout_rate=0)
    conv10 = next(parameter for parameter in model.parameters if parameter.name == "conv10.b")
    conv10.variable.set_value(np.full(4, 5, "float32"))     # otherwise its ReLU sets most outputs to 0
    network = Network(model, np.zeros((3, 256, 256)), momentum_sgd, crop=False)
    images = rng.normal(size=(3, 227, 227, 2)).astype("float32") * 60
    return network, images, np.array([2, 0], "int32")


@pytest.mark.slow
def test_step_matches_pytorch_with_same_decisions(network):
    truth = pytest.importorskip("tests.torch_truth", reason="PyTorch is not installed")
    network, images, labels = network
    truth.check_step(network, truth.squeezenet, images, labels)


@pytest.mark.slow
def test_export_computes_our_outputs_and_loads_back(network, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    network, images, _ = network
    arrays = {variable.name: variable.get_value() for variable in network.parameters}
    path = tmp_path / "net.onnx"
    save(Weights("squeezenet", arrays, np.zeros((3, 256, 256), "float32")), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.transpose(3, 0, 1, 2)})
    ours = network.logits(images).T
    np.testing.assert_allclose(logits, ours, rtol=0, atol=1e-5 * abs(ours).max())
    assert same_bits(load(path).arrays, arrays)
