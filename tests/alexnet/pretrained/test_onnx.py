"""ONNX exports give the same outputs in onnxruntime and load back bit for bit; the model zoo's files load as well."""

import errno
import importlib.util
import json
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from alexnet import pretrained
from alexnet.data.augment import centre_crop
from alexnet.models import MODELS, Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten, Layer, MaxPool
from alexnet.pretrained import Weights, WeightsError, build
from tests import caffe_truth, tiny

pytestmark = pytest.mark.slow

CLASSES = 12
TOLERANCE = 1e-5                                 # relative to the largest output


@cache
def arrays_of(shapes):
    """Return {name: random array}, scaled so that every layer influences the outputs, from (name, shape) pairs."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in shapes:
        arrays[name] = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("W"):
            arrays[name] *= np.float32(1.5 / np.sqrt(np.prod(shape[:-1])))
    return arrays


def weights_of(model):
    """Return random weights of a model."""
    arrays = arrays_of(tuple((each.name, each.shape) for each in MODELS[model](None, classes=CLASSES).parameters))
    mean = np.random.default_rng(1).uniform(90, 130, (3, 256, 256)).astype("float32")
    names = tuple(f"n{n:08d} thing, {n}" for n in range(CLASSES))
    return Weights(model, arrays, mean, names, "crop", "made up")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return the tiny network's weights and the file they are exported to."""
    path, weights = tmp_path_factory.mktemp("onnx") / "tiny.onnx", weights_of("tiny")
    pretrained.save(weights, path)
    return weights, path


def same(weights, others):
    arrays = all((weights.arrays[name] == others.arrays[name]).all() for name in weights.arrays)
    return arrays and (weights.mean == others.mean).all() and weights._replace(
        arrays=None, mean=None, origin="") == others._replace(arrays=None, mean=None, origin="")


def refusal(path):
    """Load a file that must be refused; return the error message."""
    with pytest.raises(WeightsError) as raised:
        pretrained.load(path)
    sentence = str(raised.value)
    assert sentence.startswith(str(path.parent)) and "\n" not in sentence and len(sentence) < 500
    return sentence


@pytest.mark.parametrize("model", ["alexnet", "caffenet", "bvlc_alexnet"])
def test_onnxruntime_gives_our_outputs_and_reload_is_bit_exact(tmp_path, rng, model):
    path, weights = tmp_path / "net.onnx", weights_of(model)
    pretrained.save(weights, path)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert same(pretrained.load(path), weights)

    images = rng.integers(0, 256, (3, 256, 256, 2), dtype=np.uint8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    crops = images[:, 14:241, 14:241].transpose(3, 0, 1, 2).astype("float32")
    probabilities, logits = session.run(["probabilities", "logits"], {"images": crops})
    path.unlink()                                # 229 MB, which pytest would keep for three runs
    ours = build(weights).logits(images, *centre_crop(2, 227)).T
    np.testing.assert_allclose(logits, ours, rtol=0, atol=TOLERANCE * abs(ours).max())
    powers = np.exp(ours - ours.max(axis=1, keepdims=True), dtype="float64")
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=TOLERANCE)


def test_export_is_valid_and_has_metadata(exported):
    weights, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert (len(model.graph.input), shape) == (1, ["batch", 3, 227, 227])
    assert (model.opset_import[0].version, model.ir_version) == (13, 7)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    names = {tensor.name for tensor in model.graph.initializer}
    assert names > {"mean", *(parameter.name for parameter in tiny.Tiny(None).parameters)}
    metadata = {each.key: each.value for each in model.metadata_props}
    assert (metadata["model"], metadata["resize"]) == ("tiny", "crop")
    assert json.loads(metadata["class_names"]) == list(weights.class_names)


def test_scale_and_origin_travel_with_an_export(tmp_path, rng):
    path, weights = tmp_path / "net.onnx", weights_of("tiny")._replace(scale=(0.5, 0.25, 2.0), origin="made of nothing")
    pretrained.save(weights, path)
    loaded = pretrained.load(path)
    assert same(loaded, weights) and loaded.origin == weights.origin
    images = rng.integers(0, 256, (3, 256, 256, 2), dtype=np.uint8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    crops = images[:, 14:241, 14:241].transpose(3, 0, 1, 2).astype("float32")
    (logits,) = session.run(["logits"], {"images": crops})
    ours = build(weights).logits(images, *centre_crop(2, 227)).T
    np.testing.assert_allclose(logits, ours, rtol=0, atol=TOLERANCE * abs(ours).max())
    again = tmp_path / "again.onnx"
    pretrained.save(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_missing_class_names_stay_missing(tmp_path):
    weights = weights_of("tiny")._replace(class_names=None)
    pretrained.save(weights, tmp_path / "net.onnx")
    assert pretrained.load(tmp_path / "net.onnx").class_names is None


def test_damaged_export_never_gives_other_weights(exported, tmp_path):
    weights, source = exported
    content, path, rng = bytearray(source.read_bytes()), tmp_path / "net.onnx", np.random.default_rng(0)
    for cut in [1, 10, *rng.integers(0, len(content), 20), len(content) - 1]:
        path.write_bytes(content[:cut])
        refusal(path)
    for place in [*range(8, 100), *rng.integers(0, len(content), 30), *range(len(content) - 300, len(content), 7)]:
        content[place] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            assert same(pretrained.load(path), weights)          # the bit is in an unused field, such as a name
        except WeightsError as error:
            assert "\n" not in str(error)
        content[place] = source.read_bytes()[place]


def changed(path, change):
    """Apply `change` to the ModelProto of an export; return the path of the changed file."""
    model = onnx.load(path)
    change(model)
    changed_path = path.with_name("changed.onnx")
    onnx.save(model, changed_path)
    return changed_path


def graph_changed(model):
    model.graph.node[3].op_type = "Sigmoid"


def array_changed(model):
    next(t for t in model.graph.initializer if t.name == "conv2.b").raw_data = bytes(24)


def array_lost(model):
    del model.graph.initializer[2]


def classes_renamed(model):
    next(each for each in model.metadata_props if each.key == "class_names").value = "[]"


@pytest.mark.parametrize("change, expected", [
    (graph_changed, "graph was changed"), (array_changed, "its tensors are not"), (array_lost, "its tensors are not"),
    (classes_renamed, "its metadata are not"),
])
def test_changed_export_is_refused(exported, change, expected):
    assert expected in refusal(changed(exported[1], change))


def test_weights_without_a_mean_image_are_not_exported(tmp_path):
    with pytest.raises(WeightsError, match="made up comes without a mean image"):
        pretrained.save(weights_of("tiny")._replace(mean=None), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WeightsError, match="net.onnx cannot be written: No space left on device"):
        pretrained.save(weights_of("tiny"), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_a_layer_without_a_form_in_onnx_is_named(tmp_path, monkeypatch):
    class Twice(Layer):
        kind = "twice"

        def __call__(self, x, training=None):
            return 2 * x

        def describe(self, shape):
            yield self.row(shape)

    class Strange(Model):
        image_size = 227

        def table(self, rng, classes, dropout_rate):
            return Flatten(), Dense(rng, 4, 4), Twice(), Dense(rng, 4, classes, relu=False)

    monkeypatch.setitem(MODELS, "strange", Strange)
    with pytest.raises(WeightsError, match="a layer Twice has no form in ONNX or Caffe"):
        pretrained.save(weights_of("strange"), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_missing_onnx_package_error_explains_installation(exported, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    for act in (lambda: pretrained.load(exported[1]), lambda: pretrained.save(exported[0], tmp_path / "net.onnx")):
        with pytest.raises(WeightsError, match=re.escape('pip install -e ".[onnx]"')):
            act()


# ---- the model zoo's files


def zoo_nodes(order=("pool", "norm"), **changes):
    """Return the nodes of bvlcalexnet-9.onnx or caffenet-9.onnx; `changes` maps node names to attributes."""
    at, nodes = "data_0", []

    def add(kind, name, *inputs, outputs=(), **attributes):
        nonlocal at
        attributes |= changes.get(name, {})
        nodes.append(helper.make_node(kind, [at, *inputs], [name, *outputs], name, **attributes))
        at = name

    for n, (size, stride, pad, group) in enumerate(((11, 4, 0, 1), (5, 1, 2, 2), (3, 1, 1, 1), (3, 1, 1, 2),
                                                    (3, 1, 1, 2)), 1):
        add("Conv", f"conv{n}_1", f"conv{n}_w_0", f"conv{n}_b_0", group=group, kernel_shape=[size] * 2,
            pads=[pad] * 4, strides=[stride] * 2)
        add("Relu", f"conv{n}_2")
        for step in order if n < 3 else ("pool",) if n == 5 else ():
            if step == "pool":
                pads = [0, 0, 1, 1] if n == 1 else [0, 0, 0, 0]
                add("MaxPool", f"pool{n}_1", kernel_shape=[3, 3], strides=[2, 2], pads=pads)
            else:
                add("LRN", f"norm{n}_1", size=5, alpha=1e-4, beta=0.75, bias=1.0)
    add("Reshape", "OC2_DUMMY_0", "OC2_DUMMY_1")
    for n in (6, 7, 8):
        add("Gemm", f"fc{n}_1", f"fc{n}_w_0", f"fc{n}_b_0", transB=1)
        if n < 8:
            add("Relu", f"fc{n}_2")
            add("Dropout", f"fc{n}_3", outputs=[f"_fc{n}_mask_1"])
    add("Softmax", "prob_1")
    return nodes


ZOO_SHAPES = {                                   # AlexNet's, narrow: detection compares layers and constants
    "conv1": (4, 3, 11, 11), "conv2": (6, 2, 5, 5), "conv3": (8, 6, 3, 3), "conv4": (6, 4, 3, 3),
    "conv5": (4, 3, 3, 3), "fc6": (12, 144), "fc7": (12, 12), "fc8": (1000, 12),
}
ORDERS = {"caffenet": ("pool", "norm"), "bvlc_alexnet": ("norm", "pool")}
CAFFES_MEAN = np.float32((122.6789143406786, 116.66876761696767, 104.0069879317889))               # RGB


class Narrow(Model):
    """CaffeNet with fewer channels."""

    image_size = 227
    order = 1

    def table(self, rng, classes, dropout_rate):
        between = [[MaxPool(3, 2), LRN(n=5, k=1.0, alpha=1e-4 / 5, beta=0.75)][:: self.order] for _ in range(2)]
        return (
            Conv(rng, 3, 4, size=11, stride=4), *between[0],
            Conv(rng, 4, 6, size=5, pad=2, groups=2), *between[1],
            Conv(rng, 6, 8, size=3, pad=1),
            Conv(rng, 8, 6, size=3, pad=1, groups=2),
            Conv(rng, 6, 4, size=3, pad=1, groups=2, pool=(3, 2)), Flatten(),
            Dense(rng, 144, 12), Dropout(dropout_rate),
            Dense(rng, 12, 12), Dropout(dropout_rate),
            Dense(rng, 12, classes, relu=False),
        )


class NarrowAlexNet(Narrow):
    """bvlc_alexnet with fewer channels."""

    order = -1


@pytest.fixture
def narrow(monkeypatch):
    """Replace Caffe's networks by narrow ones."""
    monkeypatch.setitem(MODELS, "caffenet", Narrow)
    monkeypatch.setitem(MODELS, "bvlc_alexnet", NarrowAlexNet)


@pytest.fixture
def pairs(rng):
    """Return {name: (weights, bias)} for BGR images; weights are (out, in, row, column) or (out, in)."""
    made = {}
    for name, shape in ZOO_SHAPES.items():
        W = rng.standard_normal(shape) * (0.02 if name == "fc8" else 1.5) / np.sqrt(np.prod(shape[1:]))
        made[name] = W.astype("float32"), rng.standard_normal(shape[0]).astype("float32")
    return made


def zoo_model(nodes, pairs, as_tensor=numpy_helper.from_array, opset=9):
    """Return a ModelProto as written by Caffe2: IR version 3, all initializers listed as inputs."""
    tensors = [as_tensor(np.ascontiguousarray(each), f"{name}_{letter}_0")
               for name, pair in pairs.items() for letter, each in zip("wb", pair, strict=True)]
    tensors.append(numpy_helper.from_array(np.array([1, -1], np.int64), "OC2_DUMMY_1"))
    images = helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 227, 227])
    inputs = [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in tensors]
    output = helper.make_tensor_value_info("prob_1", TensorProto.FLOAT, [1, 1000])
    graph = helper.make_graph(nodes, "AlexNet", [images, *inputs], [output], tensors)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, producer_name="onnx-caffe2", ir_version=3, opset_imports=opsets)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a model to a file and returns its path."""

    def written(model):
        path = tmp_path / "some.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return written


def as_floats(array, name):
    """Return a tensor that stores its values as repeated floats instead of bytes, like older files."""
    return helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel())


@pytest.mark.parametrize("model", ORDERS)
def test_zoo_networks_match_onnxruntime(write, rng, narrow, pairs, model):
    path = write(zoo_model(zoo_nodes(ORDERS[model]), pairs))
    weights = pretrained.load(path)
    assert (weights.model, weights.class_names) == (model, pretrained.imagenet_names())
    assert "taken for Caffe's" in weights.origin and (weights.mean == CAFFES_MEAN[:, None, None]).all()

    image = rng.integers(0, 256, (3, 256, 256, 1), dtype=np.uint8)
    bgr = (image[..., 0] - weights.mean)[::-1, 14:241, 14:241]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"data_0": np.ascontiguousarray(bgr[None])})
    ours = build(weights).predict(image, *centre_crop(1, 227))[:, 0]
    np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=TOLERANCE * theirs.max())


def test_equivalent_zoo_graphs_load_alike(write, narrow, pairs):
    expected = pretrained.load(write(zoo_model(zoo_nodes(), pairs))).arrays
    older = zoo_model(zoo_nodes(OC2_DUMMY_0={"shape": [1, -1]}, fc6_1={"broadcast": 1}), pairs, as_floats, opset=3)
    turned = pairs | {"fc7": (pairs["fc7"][0].T, pairs["fc7"][1])}
    transposed = zoo_model(zoo_nodes(fc7_1={"transB": 0}), turned)
    rounded = zoo_model(zoo_nodes(pool1_1={"pads": [0, 0, 0, 0], "ceil_mode": 1}), pairs)
    for model in (older, transposed, rounded):
        arrays = pretrained.load(write(model)).arrays
        assert all((arrays[name] == expected[name]).all() for name in expected)


def test_mean_file_in_the_folder_is_used(write, narrow, pairs):
    path = write(zoo_model(zoo_nodes(), pairs))
    mean = np.random.default_rng(0).uniform(0, 255, (3, 256, 256)).astype("float32")
    (path.parent / "imagenet_mean.binaryproto").write_bytes(caffe_truth.blob(mean))
    assert (pretrained.load(path).mean == mean[::-1]).all()


MISMATCHES = {
    ("conv1_1", "strides", (2, 2)): "conv1 has strides 2",
    ("conv1_1", "pads", (2, 2, 2, 2)): "conv1 has pads 2",
    ("conv1_1", "strides", (4, 2)): "conv1 has strides (4, 2)",
    ("conv1_1", "kernel_shape", (7, 7)): "kernel_shape [7, 7], and filters of size 11",
    ("conv1_1", "auto_pad", "SAME_UPPER"): "no auto_pad",
    ("conv2_1", "dilations", (2, 2)): "must have dilations 1",
    ("conv2_1", "group", 1): "conv2 has group 1",
    ("pool1_1", "pads", (1, 1, 1, 1)): "has pads 1",
    ("pool2_1", "kernel_shape", (2, 2)): "has kernel_shape 2",
    ("norm1_1", "alpha", 1.0): "lrn1 has alpha 1",
    ("norm1_1", "size", 0): "lrn1 has size 0",
    ("norm2_1", "bias", 2.0): "lrn2 has bias 2",
    ("fc6_1", "alpha", 2.0): "alpha 1, beta 1, transA 0, got [2.0",
}


@pytest.mark.parametrize("change", MISMATCHES, ids=lambda change: f"{change[0]}.{change[1]}={change[2]}")
def test_each_different_constant_is_refused(write, narrow, pairs, change):
    name, attribute, value = change
    path = write(zoo_model(zoo_nodes(**{name: {attribute: value}}), pairs))
    assert MISMATCHES[change] in refusal(path)


def graph_with(change):
    """Return a function that builds a model zoo network and applies `change` to its graph."""

    def made(pairs):
        model = zoo_model(zoo_nodes(), pairs)
        change(model.graph)
        return model

    return made


def constants(graph):
    """Replace the weights by nodes ConstantOfShape, as in the test models of the package onnx."""
    for tensor in list(graph.initializer)[:-1]:
        shape = numpy_helper.from_array(np.array(tensor.dims, np.int64), f"{tensor.name}_shape")
        graph.node.insert(0, helper.make_node("ConstantOfShape", [shape.name], [tensor.name]))
        graph.initializer.remove(tensor)
        graph.initializer.append(shape)


def resnet():
    """Return a model with as many layers as ResNet-50."""
    conv = [helper.make_node("Conv", ["data_0", "conv1_w_0", "conv1_b_0"], [f"c{n}"]) for n in range(53)]
    nodes = [*conv, helper.make_node("BatchNormalization", ["c0"], ["b"]), helper.make_node("Gemm", ["b"], ["prob_1"])]
    return zoo_model(nodes, {"conv1": (np.zeros((64, 3, 7, 7), "f4"), np.zeros(64, "f4"))})


def external(graph):
    tensor = graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def huge(graph):
    graph.initializer[0].dims[:] = [2**40, 3, 11, 11]


def negative(graph):
    graph.initializer[0].dims[:] = [-4, -3, 11, 11]


def halves(graph):
    graph.initializer[0].data_type = TensorProto.FLOAT16


def branch(graph):
    graph.node[5].input[0] = graph.node[1].output[0]


def cycle(graph):
    graph.node[0].input[0] = graph.node[-1].output[0]


def quantised(graph):
    graph.node[0].op_type = "QLinearConv"


def unknown(graph):
    graph.node[3].op_type = "GRU"


def foreign(graph):
    graph.node[0].domain = "com.microsoft"


def graph_inside(graph):
    strides = next(each for each in graph.node[0].attribute if each.name == "strides")
    strides.CopyFrom(AttributeProto(name="strides", type=AttributeProto.GRAPH, g=helper.make_graph([], "g", [], [])))


def lost(graph):
    graph.initializer[3].name = graph.input[4].name = "elsewhere"


def twice(graph):
    graph.initializer.add().CopyFrom(graph.initializer[0])


def another_input(graph):
    graph.input.add().name = "more"


def after_the_end(graph):
    graph.node.add(op_type="Gemm", input=["prob_1", "fc8_w_0", "fc8_b_0"], output=["more"])


def weights_alone(graph):
    kept = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    for node, below in zip(kept[1:], kept, strict=False):
        node.input[0] = below.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def evil_name(graph):
    graph.node[3].op_type = "in\nception" * 100


def reference(graph):
    graph.node[0].attribute[0].ref_attr_name = "outer"


def tensor_inside(graph):
    strides = next(each for each in graph.node[0].attribute if each.name == "strides")
    strides.CopyFrom(AttributeProto(name="strides", type=AttributeProto.TENSOR))          # enum value 4


def empty(graph):
    del graph.node[:]


REFUSALS = {
    external: "is stored in another file, which is not read", huge: "must have a shape of its values",
    negative: "must have a shape of its values", halves: "must be float32, got FLOAT16",
    branch: "no chain of nodes", cycle: "no chain of nodes", quantised: "is a quantised network",
    unknown: "has a node GRU", foreign: "has a node Conv", graph_inside: "conv1 has strides",
    lost: "must have weights and a bias in the file", twice: "several initializers of one name",
    weights_alone: "has Relu (conv1), it has Conv", evil_name: "has a node in?ceptionin?ception",
    reference: "conv1 has group of kind", tensor_inside: "conv1 has strides of kind 4",
    another_input: "must have one input", after_the_end: "no chain of nodes", empty: "has no graph",
    constants: "is a network 'AlexNet' and has no trained weights",
}


@pytest.mark.parametrize("change", REFUSALS, ids=lambda change: change.__name__)
def test_other_graphs_are_refused(write, narrow, pairs, change):
    assert REFUSALS[change] in refusal(write(graph_with(change)(pairs)))


def test_well_known_network_is_named(write):
    assert "is ResNet-50, which is not supported: " in refusal(write(resnet()))


# ---- exports of PyTorch


class NarrowTorchvision(Model):
    """torchvision's AlexNet with few channels and layers."""

    image_size = 224

    def table(self, rng, classes, dropout_rate):
        return Conv(rng, 3, 4, size=11, stride=16, pad=2, pool=(3, 2)), Flatten(), Dense(rng, 144, classes, relu=False)


@pytest.fixture
def pytorchs(monkeypatch, rng):
    """Return a ModelProto as PyTorch's exporters write it, of a narrow network that replaces torchvision's AlexNet."""
    monkeypatch.setitem(MODELS, "torchvision_alexnet", NarrowTorchvision)
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["conv2d"], "node_conv2d", auto_pad="NOTSET", group=1,
                         pads=[2] * 4, strides=[16, 16], dilations=[1, 1], kernel_shape=[11, 11]),
        helper.make_node("Relu", ["conv2d"], ["relu"], "node_relu"),
        helper.make_node("MaxPool", ["relu"], ["pool"], "node_pool", storage_order=0, dilations=[1, 1], ceil_mode=0,
                         pads=[0] * 4, auto_pad="NOTSET", strides=[2, 2], kernel_shape=[3, 3]),
        helper.make_node("AveragePool", ["pool"], ["avg"], "node_avg", count_include_pad=1, ceil_mode=0, pads=[0] * 4,
                         auto_pad="NOTSET", strides=[1, 1], kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["avg", "val_6"], ["view"], "node_view", allowzero=1),
        helper.make_node("Gemm", ["view", "1.weight", "1.bias"], ["linear"], "node_gemm", beta=1.0, transB=1),
    ]
    arrays = {"0.weight": (4, 3, 11, 11), "0.bias": (4,), "1.weight": (CLASSES, 144), "1.bias": (CLASSES,)}
    tensors = [numpy_helper.from_array(rng.standard_normal(shape).astype("f4"), name) for name, shape in arrays.items()]
    tensors.append(numpy_helper.from_array(np.array([1, 144], np.int64), "val_6"))
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])
    output = helper.make_tensor_value_info("linear", TensorProto.FLOAT, [1, CLASSES])
    graph = helper.make_graph(nodes, "main_graph", [images], [output], tensors)
    return helper.make_model(graph, producer_name="pytorch", producer_version="2.13.0", ir_version=10,
                             opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize("preprocessing", ["torchvision", "caffe"])
def test_pytorchs_export_needs_a_stated_preprocessing(write, pytorchs, rng, preprocessing):
    path = write(pytorchs)
    assert "written by pytorch 2.13.0, and does not state what images it takes; state it with --prep" in refusal(path)
    weights = pretrained.load(path, preprocessing=preprocessing)
    assert (weights.model, weights.resize) == ("torchvision_alexnet", {"caffe": "squash"}.get(preprocessing, "shorter"))
    assert "as stated" in weights.origin and str(path.parent) not in weights.origin

    image = rng.integers(0, 256, (3, 256, 256, 1), dtype=np.uint8)
    rgb = image[:, 16:240, 16:240, 0].astype("float64")
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    seen = (rgb / 255 - mean[:, None, None]) / std[:, None, None]
    if preprocessing == "caffe":
        seen = (rgb - CAFFES_MEAN[:, None, None])[::-1]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": np.ascontiguousarray(seen[None], "float32")})
    ours = build(weights).logits(image, *centre_crop(1, 224))[:, 0]
    np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=TOLERANCE * abs(theirs).max())


def test_the_statement_is_refused_where_the_file_states_it(exported):
    with pytest.raises(WeightsError, match="states what images it takes; omit preprocessing"):
        pretrained.load(exported[1], preprocessing="torchvision")


def test_tensors_in_a_file_beside_are_read(tmp_path, write, pytorchs):
    expected = pretrained.load(write(pytorchs), preprocessing="torchvision")
    path = tmp_path / "beside.onnx"
    onnx.save(pytorchs, path, save_as_external_data=True, location="beside.onnx.data", size_threshold=0)
    assert same(pretrained.load(path, preprocessing="torchvision"), expected)
    data = tmp_path / "beside.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    assert "beside.onnx.data ends before the values of" in refusal(path)
    data.unlink()
    assert "beside.onnx.data, which is missing; keep both files in one folder" in refusal(path)


@pytest.mark.parametrize(("key", "value", "reason"), [
    ("location", "../secret", "in another file, which is not read"), ("location", "/etc/passwd", "which is not read"),
    ("location", "..", "which is not read"), ("location", "a\0b", "which is not read"),
    ("offset", "-1", "a shape of its values"), ("length", "8", "a shape of its values"),
    ("offset", "1" * 400, "a shape of its values"),
])
def test_a_hostile_place_of_a_tensor_is_refused(tmp_path, pytorchs, key, value, reason):
    path = tmp_path / "net.onnx"
    onnx.save(pytorchs, path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    next(each for each in model.graph.initializer[0].external_data if each.key == key).value = value
    path.write_bytes(model.SerializeToString())
    assert reason in refusal(path)


def test_adaptive_pooling_with_an_effect_is_refused(write, pytorchs):
    pool = pytorchs.graph.node[3]
    next(each for each in pool.attribute if each.name == "kernel_shape").ints[:] = [2, 2]
    assert "is another network than" in refusal(write(pytorchs))


def test_known_networks_are_named(write, rng):
    """VGG-19 and ResNet-50 are refused by name; a test model of the package onnx has no weights."""
    nodes, tensors, below = [], [], "x"
    for n in range(16):
        tensors.append(numpy_helper.from_array(np.zeros((64, 3 if n == 0 else 64, 3, 3), "f4"), f"w{n}"))
        tensors.append(numpy_helper.from_array(np.zeros(64, "f4"), f"b{n}"))
        nodes.append(helper.make_node("Conv", [below, f"w{n}", f"b{n}"], [f"c{n}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{n}"], [f"r{n}"]))
        below = f"r{n}"
    for n in range(3):
        tensors.append(numpy_helper.from_array(np.zeros((9, 9), "f4"), f"d{n}"))
        tensors.append(numpy_helper.from_array(np.zeros(9, "f4"), f"e{n}"))
        nodes.append(helper.make_node("Gemm", [below, f"d{n}", f"e{n}"], [f"g{n}"]))
        below = f"g{n}"
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])
    output = helper.make_tensor_value_info(below, TensorProto.FLOAT, [1, 9])
    model = helper.make_model(helper.make_graph(nodes, "g", [images], [output], tensors), producer_name="pytorch")
    assert "is VGG-19, which is not supported" in refusal(write(model))
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_vgg19.onnx"
    assert "has no trained weights: nodes ConstantOfShape fill them" in refusal(light)


@pytest.mark.parametrize("content, expected", [
    (b"\x08", "damaged, or no ONNX file"), (b"\x08\x03", "has no graph"),
    (b"\x08" + np.random.default_rng(0).bytes(5000), "damaged, or no ONNX file"),
    (b"\x08\x03" + b"\x0b" * 100_000, "damaged, or no ONNX file"),
    (caffe_truth.field(1, 450000) + caffe_truth.field(2, b"snapshot.caffemodel"), "a .solverstate of Caffe"),
    (caffe_truth.blob(np.ones((1, 3, 4, 4))), "ONNX file"),
])
def test_what_is_no_onnx_file_is_refused(tmp_path, content, expected):
    (tmp_path / "some.onnx").write_bytes(content)
    assert expected in refusal(tmp_path / "some.onnx")


def test_damaged_zoo_files_raise_only_weights_errors(write, narrow, pairs):
    path, rng = write(zoo_model(zoo_nodes(), pairs)), np.random.default_rng(2)
    content = bytearray(path.read_bytes())
    for cut in rng.integers(1, len(content) - 2000, 25):
        path.write_bytes(content[:cut])
        refusal(path)
    for place in [*rng.integers(1, 3000, 150), *rng.integers(1, len(content), 30)]:
        before, content[place] = content[place], rng.integers(0, 256)
        path.write_bytes(content)
        try:
            pretrained.load(path)
        except WeightsError as error:
            assert "\n" not in str(error)
        content[place] = before
