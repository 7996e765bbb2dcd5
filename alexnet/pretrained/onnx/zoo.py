"""Load AlexNet and CaffeNet of the ONNX model zoo: bvlcalexnet-*.onnx and caffenet-*.onnx.

They are the networks published by Caffe, converted with Caffe2, so they take BGR images minus Caffe's mean. Their input
is declared as 224 x 224, which is an artefact of the conversion, and so is the end padding of the pooling that
compensates for it. Our networks take 227 x 227, as Caffe does. The graph must be a chain of nodes that matches one of
our models in every step and constant. Files of the zoo may differ in opset and in the storage of tensors.

Source: github.com/onnx/models, validated/vision/classification/alexnet and caffenet; onnx.ai/onnx/operators.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from alexnet.nn.layer import Step, convolution_step, dense_step, flatten_step, max_pool_step
from alexnet.pretrained.caffe.layout import parameters
from alexnet.pretrained.caffe.mean import mean_beside
from alexnet.pretrained.graph import AnotherNetwork, model_of
from alexnet.pretrained.known import known_network
from alexnet.pretrained.onnx.tensors import array_of, tensors_of
from alexnet.pretrained.protobuf import printable
from alexnet.pretrained.weights import Weights, WeightsError, checked

Attributes: TypeAlias = Mapping[str, Any]
Tensors: TypeAlias = Mapping[str, TensorProto]
Pair: TypeAlias = tuple[np.ndarray, np.ndarray]        # weights and bias

NO_OPS = ("Dropout", "Identity")                      # nodes that do not change the values
KINDS = AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.INTS, AttributeProto.STRING
QUANTISED = ("QLinear", "Quantize", "Integer")
END_PADS = ([0, 0, 0, 0], [0, 0, 1, 1])               # pads of pooling; with 227 pixels no window reaches the padding


def weights_of(proto: ModelProto, path: Path) -> Weights:
    """Return the Weights of a ModelProto; raises WeightsError."""
    known = known_network(*summary_of(proto.graph))
    if any(node.op_type == "ConstantOfShape" for node in proto.graph.node):
        name = printable(proto.graph.name)
        what = f"{known}, which is not supported, and has" if known else f"a network {name!r} with"
        raise WeightsError(f"{path} is {what} constants instead of trained weights (its nodes ConstantOfShape)")
    try:
        chain = steps_and_pairs(proto.graph, path)
        model = model_of([step for step, _ in chain], path)
    except AnotherNetwork as error:
        raise error.named(known) from error
    pairs = (pair for _, pair in chain if pair)
    mean, mean_origin = mean_beside(path)
    origin = f"{model} of the ONNX file {path}, taken for Caffe's, which sees BGR, with {mean_origin}"
    return checked(Weights(model, parameters(pairs, model), mean, origin=origin), path)


def summary_of(graph: GraphProto) -> tuple[list[int], int, bool]:
    """Return (filters of each convolution, number of dense layers, whether there is batch normalisation) of a graph."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {name: list(tensor.dims[:4]) for name, tensor in tensors.items()}
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.output and node.input and node.input[0] in tensors:
            shapes[node.output[0]] = numbers_of(tensors[node.input[0]])
    kinds = [node.op_type for node in graph.node]
    filters = [shapes.get(node.input[1]) for node in graph.node if node.op_type == "Conv" and len(node.input) > 1]
    return [shape[0] if shape else 0 for shape in filters], kinds.count("Gemm"), "BatchNormalization" in kinds


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
    tensors = tensors_of(graph, path)
    inputs = [value.name for value in graph.input if value.name not in tensors]    # old files list the weights too
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
            chain.append(STEPS[kind](node, attributes, tensors, f"{path}: {name}"))
        elif kind not in (*NO_OPS, "Softmax"):
            raise unsupported(kind, path)
    return chain


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
    "Flatten": flattening, "Reshape": flattening,
}


def pair_of(node: NodeProto, tensors: Tensors, source: str) -> Pair:
    """Return (weights, bias) of a node; raises WeightsError unless both are initializers."""
    names = node.input[1:]
    if len(names) != 2 or any(name not in tensors for name in names):
        given = ", ".join(map(printable, names)) or "none"
        raise WeightsError(f"{source} must have weights and a bias in the file, got {given}")
    weights, bias = (array_of(tensors[name], f"{source}: {printable(name)}") for name in names)
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
