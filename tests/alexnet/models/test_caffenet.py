"""Caffe's two networks match their prototxts, and a training step of bvlc_alexnet uses only our kernels."""

import numpy as np
import pytest

from alexnet.backends.cpu.linker import CpuKernel
from alexnet.models import MODELS
from alexnet.native import compiler
from alexnet.nn import LRN
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from tests import caffe_truth

pytestmark = pytest.mark.slow

BIASES = {                                       # bias_filler of conv1 … fc8; models/*/train_val.prototxt
    "caffenet": (0, 1, 0, 1, 1, 1, 1, 0),
    "bvlc_alexnet": (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0),
}
ORDERS = {"caffenet": "conv pool lrn", "bvlc_alexnet": "conv lrn pool"}
SMALL = 1 << 16                                  # bytes


@pytest.mark.parametrize("name", BIASES)
def test_tables_match_caffe_prototxts(name):
    model = MODELS[name](None)
    biases = [parameter.variable.get_value()[0] for parameter in model.parameters[1::2]]
    assert biases == [np.float32(value) for value in BIASES[name]]
    rows = list(model.describe((3, 227, 227)))
    assert [row.name for row in rows[:6]] == [f"{kind}{n}" for n in (1, 2) for kind in ORDERS[name].split()]
    assert sum(row.parameters for row in rows) == 60_965_224
    for layer in model.layers:
        if isinstance(layer, LRN):        # Caffe: local_size 5, alpha 1e-4 (over 5), beta 0.75, k 1
            op = layer.normalise
            assert (op.n, op.k, op.alpha, op.beta) == (5, 1.0, pytest.approx(1e-4 / 5), 0.75)


def caffe_blobs(arrays):
    """Return our arrays in Caffe's layout, except that channels are RGB."""
    layout = {4: (3, 0, 1, 2), 2: (1, 0)}
    names = list(dict.fromkeys(name.split(".")[0] for name in arrays))
    return {n: (arrays[f"{n}.W"].transpose(layout[arrays[f"{n}.W"].ndim]), arrays[f"{n}.b"]) for n in names}


def cost_in_float64(arrays, image, label, name):
    logits = caffe_truth.outputs(caffe_blobs(arrays), image, name)
    return np.log(np.exp(logits - logits.max()).sum()) - (logits[label] - logits.max())


@pytest.mark.skipif(not compiler.compiler_available(), reason="the cpu backend needs a C compiler")
def test_bvlc_alexnet_step_matches_float64_and_uses_kernels(rng):
    name = "bvlc_alexnet"                        # unlike AlexNet, it normalises before pooling
    model = MODELS[name](np.random.default_rng(0), dropout_rate=0)
    network = Network(model, np.zeros((3, 256, 256)), momentum_sgd, crop=False)
    images, labels = (rng.random((3, 227, 227, 1), "float32") - 0.5) * 255, np.array([7], "int32")
    cost, _ = network.compute(images, labels)
    arrays = {variable.name: variable.get_value() for variable in network.parameters}
    assert cost == pytest.approx(cost_in_float64(arrays, images[..., 0], 7, name), rel=1e-5)

    # the slope of a function along its gradient g is g . g; fc6 and fc7 are excluded because they are large
    gradients = {v.name: g.get_value() for v, g in zip(network.parameters, network.gradients, strict=True)}
    moved = {n: g.astype("float64") for n, g in gradients.items() if n not in ("fc6.W", "fc7.W")}
    slope = sum(np.sum(np.square(g)) for g in moved.values())
    step = 1e-4 / slope
    ahead, behind = ({n: arrays[n] + sign * step * g for n, g in moved.items()} for sign in (1, -1))
    rise = [cost_in_float64(arrays | place, images[..., 0], 7, name) for place in (behind, ahead)]
    assert (rise[1] - rise[0]) / (2 * step) == pytest.approx(slope, rel=1e-3)

    network.apply(np.float32(1e-3))
    (later, _), large = left_to_numpy(network.compute, images, labels)
    assert later < cost
    assert large == {}


def left_to_numpy(function, *arguments):
    """Call the function; return its result and {Op: bytes} of arrays above SMALL made without one of our kernels."""
    vm, large = function.vm, {}

    def watched(node, thunk):
        def run():
            thunk()
            nbytes = max(getattr(vm.storage_map[variable][0], "nbytes", 0) for variable in node.outputs)
            if nbytes > SMALL and not (isinstance(node.op, CpuKernel) or node.op.view_map):
                large[str(node.op)] = nbytes

        return run

    vm.thunks[:] = [watched(node, thunk) for node, thunk in zip(vm.nodes, vm.thunks, strict=True)]
    return function(*arguments), large
