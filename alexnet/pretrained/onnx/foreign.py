"""Load ONNX files of other programs: AlexNet and CaffeNet of the ONNX model zoo, and exports of PyTorch.

The graph must be a chain of nodes that matches one of our models in every step and constant. Files may differ in opset
and in the storage of tensors.

ONNX does not state what images a network takes. bvlcalexnet-*.onnx and caffenet-*.onnx of the zoo are the networks
published by Caffe, converted with Caffe2, so they take BGR images minus Caffe's mean. Their input is declared as
224 x 224, which is an artefact of the conversion, and so is the end padding of the pooling that compensates for it. Our
networks take 227 x 227, as Caffe does. For all other files the user states the preprocessing.

PyTorch has two exporters. That of torch.export writes tensors to FILE.onnx.data by default. Both write adaptive average
pooling that does nothing as an AveragePool of single pixels.

Source: github.com/onnx/models, validated/vision/classification/alexnet and caffenet; onnx.ai/onnx/operators;
torch.onnx.export of PyTorch 2.13.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from alexnet.nn.layer import Step, convolution_step, dense_step, flatten_step, max_pool_step
from alexnet.pretrained.graph import AnotherNetwork, chain_of, model_of
from alexnet.pretrained.known import known_network
from alexnet.pretrained.layout import Pair, converted
from alexnet.pretrained.onnx.tensors import array_of, tensors_of
from alexnet.pretrained.preprocessing import PREPROCESSINGS, preprocessing_of
from alexnet.pretrained.protobuf import printable
from alexnet.pretrained.weights import Weights, WeightsError, checked

Attributes: TypeAlias = Mapping[str, Any]

CAFFES = "onnx-caffe2"                                # the producer of networks that Caffe published
NO_OPS = ("Dropout", "Identity")                      # nodes that do not change the values
KINDS = AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.INTS, AttributeProto.STRING
QUANTISED = ("QLinear", "Quantize", "Integer")
END_PADS = ([0, 0, 0, 0], [0, 0, 1, 1])               # pads of pooling; with 227 pixels no window reaches the padding


class Tensors(NamedTuple):
    """The initializers of a file, by name, and its folder, where they may be stored too."""

    protos: Mapping[str, TensorProto]
    folder: Path

    def array(self, name: str, source: str) -> np.ndarray:
        """Return an initializer as a float32 array; raises WeightsError with `source` as its name."""
        return array_of(self.protos[name], source, self.folder)


def weights_of(proto: ModelProto, path: Path, preprocessing: str | None = None) -> Weights:
    """Return the Weights of a ModelProto.

    Args:
        preprocessing: a name of alexnet.pretrained.preprocessing; None if the user states none.

    Raises:
        WeightsError: the file holds none of our models, or it is unknown what images it takes.
    """
    known = network_of(proto.graph)
    if any(node.op_type == "ConstantOfShape" for node in proto.graph.node):
        what = f"{known}, which is not supported," if known else f"a network {printable(proto.graph.name)!r}"
        raise WeightsError(f"{path} is {what} and has no trained weights: nodes ConstantOfShape fill them, as in the "
                           "test models of the package onnx")
    try:
        chain = steps_and_pairs(proto.graph, path)
        model = model_of([step for step, _ in chain], path)
    except AnotherNetwork as error:
        raise error.named(known) from error
    producer = f"{printable(proto.producer_name)} {printable(proto.producer_version)}".strip() or "an unknown program"
    if preprocessing is None and proto.producer_name != CAFFES:
        choices = " or ".join(f"{name} ({summary})" for name, summary in PREPROCESSINGS.items())
        raise WeightsError(
            f"{path} is {model} written by {producer}, and does not state what images it takes; state it with "
            f"--preprocessing, before training with that of export: {choices}"
        )
    stated = preprocessing_of(preprocessing or "caffe", path, model)
    assumed = "as stated" if preprocessing else "taken for Caffe's"
    arrays = converted(chain_of(model), [pair for _, pair in chain if pair], stated.bgr)
    return checked(Weights(
        model=model,
        arrays=arrays,
        mean=stated.mean,
        resize=stated.resize,
        origin=f"{model} of the ONNX file {path.name}, written by {producer}; {stated.summary}, {assumed}",
        scale=stated.scale,
    ), path)


def network_of(graph: GraphProto) -> str | None:
    """Return the name of an unsupported network from its nodes, or None if it is unknown."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: list(tensor.dims[:4]) for name, tensor in tensors.items()}
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.output and node.input and node.input[0] in tensors:
            shapes[node.output[0]] = numbers_of(tensors[node.input[0]])
    inputs = [shapes.get(node.input[1]) for node in graph.node if node.op_type == "Conv" and len(node.input) > 1]
    filters = [shape[0] if shape else 0 for shape in inputs]
    dense = sum(node.op_type == "Gemm" for node in graph.node)
    # exporters fold batch normalisation into the convolutions
    return known_network(filters, dense, False) or known_network(filters, dense, True)


def numbers_of(tensor: TensorProto) -> list[int]:
    """Return the first values of an int64 tensor, such as a shape; none if it is of another type."""
    if tensor.data_type != TensorProto.INT64:
        return []
    raw = tensor.raw_data[: 4 * 8]
    return np.frombuffer(raw, "<i8").tolist() if raw and len(raw) % 8 == 0 else list(tensor.int64_data[:4])


def steps_and_pairs(graph: GraphProto, path: Path) -> list[tuple[Step, Pair | None]]:
    """Return (step, its weights and bias or None) of each node of a graph.

    The input of each node must be the output of the previous one.

    Raises:
        WeightsError: the nodes are not a chain of supported nodes.
    """
    tensors = Tensors(tensors_of(graph, path), path.parent)
    # old files list the weights too
    inputs = [value.name for value in graph.input if value.name not in tensors.protos]
    if len(inputs) != 1:
        raise WeightsError(f"{path} must have one input, the images, got {len(inputs)}")
    chain: list[tuple[Step, Pair | None]] = []
    given = inputs[0]
    for node in graph.node:
        kind = printable(node.op_type)
        if kind == "Constant":
            continue                                   # the shape argument of a Reshape
        name = printable(node.name) or kind
        if not node.input or node.input[0] != given or not node.output:
            what = f"the input of {name} is not the output of the node before it"
            raise AnotherNetwork(path, f"no chain of nodes: {what}")
        given = "" if kind == "Softmax" else node.output[0]     # nothing may follow the probabilities
        if kind in STEPS and node.domain in ("", "ai.onnx"):
            attributes = {each.name: value_of(each) for each in node.attribute}
            step, pair = STEPS[kind](node, attributes, tensors, f"{path}: {name}")
            if not is_identity(step):
                chain.append((step, pair))
        elif kind not in (*NO_OPS, "Softmax"):
            raise unsupported(kind, path)
    return chain


def is_identity(step: Step) -> bool:
    """Whether a step is the average of single pixels, as which exporters write adaptive pooling that does nothing."""
    plain = {"kernel_shape": 1, "strides": 1, "pads": 0}
    return step.operator == "AveragePool" and dict(step.attributes) == plain


def unsupported(kind: str, path: Path) -> WeightsError:
    """Return the error for a node of a type that is not supported."""
    if any(word in kind for word in QUANTISED):
        return WeightsError(f"{path} is a quantised network (it has a node {kind}); take the one in float32")
    return AnotherNetwork(path, f"it has a node {kind}")


def value_of(attribute: AttributeProto) -> Any:
    """Return the value of an attribute, or a description if its type is not supported, such as a graph."""
    if attribute.type not in KINDS or attribute.ref_attr_name:
        return f"of kind {attribute.type}"
    return helper.get_attribute_value(attribute)


# ---- the step of a node


def convolution(node: NodeProto, attributes: Attributes, tensors: Tensors, source: str) -> tuple[Step, Pair]:
    """Return the step and weights of a Conv; raises WeightsError if our convolution cannot compute it."""
    weights, bias = pair_of(node, tensors, source)
    if weights.ndim != 4:
        raise WeightsError(f"{source} must have filters with four axes, got shape {weights.shape}")
    size = one_number(weights.shape[2:])
    check_plain(attributes, source)
    if one_number(attributes.get("kernel_shape", [size])) != size:
        raise WeightsError(f"{source} has kernel_shape {attributes['kernel_shape']}, and filters of size {size}")
    stride, pad = (one_number(attributes.get(name, [value])) for name, value in (("strides", 1), ("pads", 0)))
    return convolution_step(len(weights), size, stride, pad, attributes.get("group", 1)), (weights, bias)


def pooling(node: NodeProto, attributes: Attributes, tensors: Tensors, source: str) -> tuple[Step, None]:
    """Return the step of a MaxPool; raises WeightsError for dilated windows or automatic padding."""
    check_plain(attributes, source)
    pads = attributes.get("pads", [0])
    pad = 0 if pads in END_PADS else one_number(pads)
    size, stride = (one_number(attributes.get(name, [value])) for name, value in (("kernel_shape", 0), ("strides", 1)))
    return max_pool_step(size, stride, pad, attributes.get("ceil_mode", 0)), None


def average(node: NodeProto, attributes: Attributes, tensors: Tensors, source: str) -> tuple[Step, None]:
    """Return the step of an AveragePool; raises WeightsError for dilated windows or automatic padding."""
    check_plain(attributes, source)
    names = {"kernel_shape": 0, "strides": 1, "pads": 0}
    values = {name: one_number(attributes.get(name, [value])) for name, value in names.items()}
    return Step("AveragePool", **values), None


def normalisation(node: NodeProto, attributes: Attributes, tensors: Tensors, source: str) -> tuple[Step, None]:
    """Return the step of an LRN."""
    constants = {"size": 0, "bias": 1.0, "alpha": 1e-4, "beta": 0.75}
    return Step("LRN", **{name: attributes.get(name, default) for name, default in constants.items()}), None


def dense(node: NodeProto, attributes: Attributes, tensors: Tensors, source: str) -> tuple[Step, Pair]:
    """Return the step and weights (out, in) of a Gemm; raises WeightsError for factors and inconsistent shapes."""
    weights, bias = pair_of(node, tensors, source)
    factors = [attributes.get(name, right) for name, right in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))]
    if weights.ndim != 2 or factors != [1, 1, 0]:
        raise WeightsError(f"{source} must have weights with two axes, and alpha 1, beta 1, transA 0, got {factors}")
    weights = weights if attributes.get("transB", 0) else weights.T
    if len(weights) != bias.size:
        raise WeightsError(f"{source} must have weights for its {bias.size} biases, got {len(weights)} outputs")
    return dense_step(bias.size), (weights, bias)


def rectifier(node: NodeProto, attributes: Attributes, tensors: Tensors, source: str) -> tuple[Step, None]:
    """Return the step of a Relu."""
    return Step("Relu"), None


def flattening(node: NodeProto, attributes: Attributes, tensors: Tensors, source: str) -> tuple[Step, None]:
    """Return the step of a Flatten or Reshape."""
    return flatten_step(), None


STEPS: dict[str, Callable[[NodeProto, Attributes, Tensors, str], tuple[Step, Pair | None]]] = {    # by op_type
    "Conv": convolution, "Relu": rectifier, "MaxPool": pooling, "LRN": normalisation, "Gemm": dense,
    "Flatten": flattening, "Reshape": flattening, "AveragePool": average,
}


def pair_of(node: NodeProto, tensors: Tensors, source: str) -> Pair:
    """Return (weights, bias) of a node; raises WeightsError unless both are initializers."""
    names = node.input[1:]
    if len(names) != 2 or any(name not in tensors.protos for name in names):
        given = ", ".join(map(printable, names)) or "none"
        raise WeightsError(f"{source} must have weights and a bias in the file, got {given}")
    weights, bias = (tensors.array(name, f"{source}: {printable(name)}") for name in names)
    return weights, bias.reshape(-1)


def check_plain(attributes: Attributes, source: str) -> None:
    """Raise WeightsError for dilated windows or automatic padding."""
    auto_pad, dilations = attributes.get("auto_pad", b"NOTSET"), attributes.get("dilations", [1])
    if auto_pad not in (b"NOTSET", b"VALID") or one_number(dilations) != 1:
        raise WeightsError(f"{source} must have dilations 1 and no auto_pad, got {dilations} and {auto_pad}")


def one_number(values: Sequence[int] | str) -> Any:
    """Return the common value if all values are equal, else all of them as a tuple."""
    if not isinstance(values, list | tuple) or not values:
        return values
    return values[0] if len(set(values)) == 1 else tuple(values)
