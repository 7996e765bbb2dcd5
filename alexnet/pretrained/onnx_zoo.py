"""Load AlexNet and CaffeNet of the ONNX model zoo: bvlcalexnet-*.onnx and caffenet-*.onnx.

They are the networks published by Caffe, converted with Caffe2, so they take BGR images minus Caffe's mean. Their input
is declared as 224 x 224, which is an artefact of the conversion, and so is the end padding of the pooling that
compensates for it. Our networks take 227 x 227, as Caffe does. The graph must be a chain of nodes that matches one of
our models in every step and constant. Files of the zoo may differ in opset and in the storage of tensors.

Source: github.com/onnx/models, validated/vision/classification/alexnet and caffenet; onnx.ai/onnx/operators.
"""

from onnx import AttributeProto, helper

from alexnet.pretrained.caffe_layout import parameters
from alexnet.pretrained.caffe_mean import mean_beside
from alexnet.pretrained.chain import (
    Convolution,
    Dense,
    Flatten,
    MaxPool,
    Normalisation,
    Relu,
    has_weights,
    model_of,
)
from alexnet.pretrained.onnx_tensors import array_of, tensors_of
from alexnet.pretrained.protobuf import printable as words
from alexnet.pretrained.weights import Weights, WeightsError, checked

HANDING_ON = ("Dropout", "Identity")                  # nodes that do not change the values
KINDS = AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.INTS, AttributeProto.STRING
QUANTISED = ("QLinear", "Quantize", "Integer")
END_PADS = ([0, 0, 0, 0], [0, 0, 1, 1])               # pads of pooling; with 227 pixels no window reaches the padding


def weights_of(proto, path):
    """Return the Weights of a ModelProto; raises WeightsError."""
    chain = chain_of(proto.graph, path)
    found = [step for step, _ in chain]
    model = model_of(found, path)
    pairs = (pair for step, pair in chain if has_weights(step))
    mean, mean_origin = mean_beside(path)
    origin = f"{model} of the ONNX file {path}, taken for Caffe's, which sees BGR, with {mean_origin}"
    return checked(Weights(model, parameters(pairs, model), mean, origin=origin), path)


def chain_of(graph, path):
    """Return [(step, (weights, bias) or None)] of the nodes of a graph.

    The input of each node must be the output of the previous one.

    Raises:
        WeightsError: the nodes are not a chain of supported nodes.
    """
    tensors = tensors_of(graph, path)
    inputs = [value.name for value in graph.input if value.name not in tensors]    # old files list the weights too
    if len(inputs) != 1:
        raise WeightsError(f"{path} must have one input, the images, got {len(inputs)}")
    chain, given = [], inputs[0]
    for node in graph.node:
        kind = words(node.op_type)
        if kind == "Constant":
            continue                                   # the shape argument of a Reshape
        name = words(node.name) or kind
        if not node.input or node.input[0] != given or not node.output:
            what = f"{name} does not take what the node before it gave"
            raise WeightsError(f"{path} is another network than ours, no chain of nodes: {what}")
        given = "" if kind == "Softmax" else node.output[0]     # nothing may follow the probabilities
        if kind in STEPS and node.domain in ("", "ai.onnx"):
            attributes = {each.name: value_of(each) for each in node.attribute}
            chain.append(STEPS[kind](node, attributes, tensors, f"{path}: {name}"))
        elif kind not in (*HANDING_ON, "Softmax"):
            raise WeightsError(f"{path} {reason(kind)}")
    return chain


def reason(kind):
    """Explain why a node of this type is not supported."""
    if any(word in kind for word in QUANTISED):
        return f"is a quantised network (it has a node {kind}); take the one in float32"
    return f"is another network than ours: it has a node {kind}"


def value_of(attribute):
    """Return the value of an attribute, or a description if its type is not supported, such as a graph."""
    if attribute.type not in KINDS or attribute.ref_attr_name:
        return f"of kind {attribute.type}"
    return helper.get_attribute_value(attribute)


# ---- the step of a node


def convolution(node, attributes, tensors, source):
    weights, bias = pair_of(node, tensors, source)
    if weights.ndim != 4:
        raise WeightsError(f"{source} must have filters with four axes, got shape {weights.shape}")
    size = alike(weights.shape[2:])
    pad = alike(attributes.get("pads", [0]))
    check_plain(attributes, source)
    if alike(attributes.get("kernel_shape", [size])) != size:
        raise WeightsError(f"{source} has kernel_shape {attributes['kernel_shape']}, and filters of size {size}")
    step = Convolution(size, alike(attributes.get("strides", [1])), pad, attributes.get("group", 1), len(weights))
    return step, (weights, bias)


def pooling(node, attributes, tensors, source):
    check_plain(attributes, source)
    pads = attributes.get("pads", [0])
    pad = 0 if pads in END_PADS else alike(pads)
    return MaxPool(alike(attributes.get("kernel_shape", [0])), alike(attributes.get("strides", [1])), pad), None


def normalisation(node, attributes, tensors, source):
    n, alpha = attributes.get("size", 0), attributes.get("alpha", 1e-4)
    if not isinstance(n, int) or n < 1 or not isinstance(alpha, float):
        raise WeightsError(f"{source} must have a size of channels, got {n!r}")
    step = Normalisation(n, attributes.get("bias", 1.0), alpha / n, attributes.get("beta", 0.75))
    return step, None                                  # alpha / n, because ONNX divides alpha by n


def dense(node, attributes, tensors, source):
    weights, bias = pair_of(node, tensors, source)
    factors = [attributes.get(name, right) for name, right in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))]
    if weights.ndim != 2 or factors != [1, 1, 0]:
        raise WeightsError(f"{source} must have weights with two axes, and alpha 1, beta 1, transA 0, got {factors}")
    weights = weights if attributes.get("transB", 0) else weights.T
    if len(weights) != bias.size:
        raise WeightsError(f"{source} must have weights for its {bias.size} biases, got {len(weights)} outputs")
    return Dense(bias.size), (weights, bias)


def rectifier(node, attributes, tensors, source):
    return Relu(), None


def flattening(node, attributes, tensors, source):
    return Flatten(), None


STEPS = {                               # op_type -> function (node, attributes, tensors, message name) -> (step, pair)
    "Conv": convolution, "Relu": rectifier, "MaxPool": pooling, "LRN": normalisation, "Gemm": dense,
    "Flatten": flattening, "Reshape": flattening,
}


def pair_of(node, tensors, source):
    """Return (weights, bias) of a node; raises WeightsError unless both are initializers."""
    names = node.input[1:]
    if len(names) != 2 or any(name not in tensors for name in names):
        given = ", ".join(map(words, names)) or "none"
        raise WeightsError(f"{source} must have weights and a bias in the file, got {given}")
    weights, bias = (array_of(tensors[name], f"{source}: {words(name)}") for name in names)
    return weights, bias.reshape(-1)


def check_plain(attributes, source):
    """Raise WeightsError for dilated windows or automatic padding."""
    auto_pad, dilations = attributes.get("auto_pad", b"NOTSET"), attributes.get("dilations", [1])
    if auto_pad not in (b"NOTSET", b"VALID") or alike(dilations) != 1:
        raise WeightsError(f"{source} must have dilations 1 and no auto_pad, got {dilations} and {auto_pad}")


def alike(values):
    """Return the common value if all values are equal, else all of them as a tuple."""
    if not isinstance(values, list | tuple) or not values:
        return values
    return values[0] if len(set(values)) == 1 else tuple(values)
