"""Load Caffe weights: the published CaffeNet, AlexNet, GoogLeNet, VGG-16, SqueezeNet, and fine-tuned networks.

A .caffemodel is a NetParameter with the settings and blobs of each layer, in `layers` (as in the files of 2014) or in
`layer`. The model is identified from the layers and their constants. Filters are (out, in / groups, row, column) for
BGR images, dense weights are (out, in). The converted network takes RGB images and computes the same outputs as Caffe.

Source: BVLC Caffe, src/caffe/proto/caffe.proto and models/*/readme.md.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.models import MODELS
from alexnet.nn.layer import Chain, Step, Value, convolution_step, dense_step, flatten_step, max_pool_step
from alexnet.pretrained.caffe.mean import constant_mean, mean_beside
from alexnet.pretrained.caffe.messages import MESSAGES, Fields, array_of, brief, shape_of
from alexnet.pretrained.graph import (
    AnotherNetwork,
    chain_of,
    comparable,
    model_of,
    one_class,
    pairs_with,
    same_steps,
    towers_of,
    weight_steps,
)
from alexnet.pretrained.known import known_network
from alexnet.pretrained.layout import Pair, converted
from alexnet.pretrained.protobuf import contents, parsed, printable
from alexnet.pretrained.weights import Weights, WeightsError, checked

PUBLISHED = {                           # SHA-1 -> file, from the readme.md of each model
    "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46": "bvlc_reference_caffenet.caffemodel",
    "9116a64c0fbe4459d18f4bb6b56d647b63920377": "bvlc_alexnet.caffemodel",
    "405fc5acd08a3bb12de8ee5e23a96bec22f08204": "bvlc_googlenet.caffemodel",
}
NET_NAMES = {"CaffeNet": "caffenet", "AlexNet": "bvlc_alexnet"}
RESIZES_OF = {"vgg16": "shorter"}       # as the authors evaluated it
MAX_LAYERS = 2000
V1_TYPES = {                            # V1LayerParameter.LayerType -> LayerParameter.type
    1: "Accuracy", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 8: "Flatten", 9: "HDF5Data", 12: "ImageData",
    14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax", 21: "SoftmaxWithLoss",
    22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 29: "MemoryData", 30: "ArgMax", 32: "DummyData",
    36: "Silence", 39: "Deconvolution",
}
NO_OPS = ("Dropout", "Flatten", "Split")             # layers that do not change the values
ENDS = (                                # layers before and after the network itself
    "Data", "DummyData", "HDF5Data", "ImageData", "Input", "MemoryData", "WindowData",
    "Accuracy", "ArgMax", "Silence", "Softmax", "SoftmaxWithLoss",
)


class FoundNetwork(NamedTuple):
    """The layers of a file.

    chain   the network, from the images to its output
    towers  (number of steps of `chain` before it, steps) of each chain that leaves the network
    layers  the layer of each step except Concat
    """

    chain: Chain
    towers: Sequence[tuple[int, Chain]]
    layers: Mapping[Step, Fields]


def load(path: Path) -> Weights:
    """Load the Weights of a .caffemodel. The conversion is exact; raises WeightsError."""
    data = contents(path)
    if all(byte >= 0x20 or byte in b"\t\n\r" for byte in data[:512]):
        raise WeightsError(f"{path} is a text, as a prototxt, which has no weights; they are in a .caffemodel")
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    net: Fields = parsed(MESSAGES["NetParameter"](), data, path, ".caffemodel")
    del data                                           # frees memory: the message has a copy
    try:
        found = network_of(net, path)
        model = identified(net, found, path)
    except AnotherNetwork as error:
        raise error.named(known_network(*weight_shapes(net))) from error
    mean, mean_origin = mean_of(net, path, model)
    return checked(Weights(
        model=model,
        arrays=arrays_of(found, model, path),
        mean=mean,
        resize=RESIZES_OF.get(model, "squash"),
        origin=f"{model} of Caffe's {path.name}, {publication(sha1)}, with {mean_origin}",
    ), path)


def publication(sha1: str) -> str:
    """Describe whether a file is one of those that Caffe published."""
    if sha1 in PUBLISHED:
        return f"the published {PUBLISHED[sha1]}"
    return f"none of the files that Caffe published (sha1 {sha1})"


# ---- identifying the model


def network_of(net: Fields, path: str | Path) -> FoundNetwork:
    """Return the FoundNetwork of a NetParameter.

    The network ends with the last layer that computes something. A layer that names no input follows the previous one.

    Raises:
        WeightsError: a layer is not supported, or takes a blob that no layer computes.
    """
    layers = [*net.layers, *net.layer]
    if len(layers) > MAX_LAYERS:
        raise WeightsError(f"{path} has {len(layers)} layers; networks with more than {MAX_LAYERS} are not read")
    chain: Chain = ()                                  # of the previous layer
    chains: dict[bytes, Chain] = {}                    # blob -> the steps that compute it
    layer_of: dict[Step, Fields] = {}
    ends: list[Chain] = []                             # chains whose output no layer has taken
    for layer in layers:
        kind = type_of(layer, path)
        if kind in ENDS:
            chains |= dict.fromkeys(layer.top, ())
            continue
        below = inputs_of(layer, chains, chain, path)
        if kind in NO_OPS:
            chains |= dict.fromkeys(layer.top, below[0])
            continue
        if kind == "Concat":
            chain = concatenated(layer, below, path)
        else:
            step = STEPS[kind](layer, f"{path}: {printable(layer.name)}")
            layer_of[step] = layer
            chain = (*below[0], (printable(layer.name), step))
        chains |= dict.fromkeys(layer.top, chain)
        ends = [*(end for end in ends if end not in below), chain]
    towers = [tower_of(end, chain, path) for end in ends if end != chain]
    return FoundNetwork(with_flatten(chain), towers, layer_of)


def inputs_of(layer: Fields, chains: Mapping[bytes, Chain], previous: Chain, path: str | Path) -> list[Chain]:
    """Return the chain of each input of a layer; raises AnotherNetwork if no layer computes an input."""
    if not layer.bottom or not chains:
        return [previous]
    for blob in layer.bottom:
        if blob not in chains:
            what = f"{printable(layer.name)} takes {printable(blob)}"
            raise AnotherNetwork(path, f"{what}, which no layer before it computes")
    return [chains[blob] for blob in layer.bottom]


def concatenated(layer: Fields, below: Sequence[Chain], path: str | Path) -> Chain:
    """Return the chain that ends with a Concat: the steps that all branches share, then the rest as branches."""
    settings = layer.concat_param
    if (settings.axis, settings.concat_dim) != (1, 1):
        raise AnotherNetwork(path, f"{printable(layer.name)} must concatenate channels")
    shared = min(shared_steps(below[0], other) for other in below)
    branches = tuple(branch[shared:] for branch in below)
    if len(branches) < 2 or not all(branches):
        raise AnotherNetwork(path, f"{printable(layer.name)} must concatenate the outputs of several layers")
    return (*below[0][:shared], (printable(layer.name), Step("Concat", branches=branches, axis=1)))


def tower_of(end: Chain, chain: Chain, path: str | Path) -> tuple[int, Chain]:
    """Return (number of shared steps, the other steps of `end`) of a chain that leaves the network."""
    shared = shared_steps(end, chain)
    if shared == len(end):
        raise AnotherNetwork(path, "the output of a layer is not used")
    return shared, with_flatten(end[shared:])


def shared_steps(one: Chain, other: Chain) -> int:
    """Return the number of steps with which both chains start."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (mine, its) in enumerate(pairs) if mine is not its), min(len(one), len(other)))


def type_of(layer: Fields, path: str | Path) -> str:
    """Return the type of a V1LayerParameter or LayerParameter; raises WeightsError for unsupported types."""
    if isinstance(layer, MESSAGES["V1LayerParameter"]):
        if layer.HasField("layer"):
            raise WeightsError(f"{path} is of Caffe before 2014 (V0); convert it with its upgrade_net_proto_binary")
        kind = V1_TYPES.get(layer.type, f"number {layer.type}")
    else:
        kind = printable(layer.type)
    if not layer.HasField("type") and layer.blobs:     # the file has weights but no layer settings
        kind = "Convolution" if printable(layer.name).startswith("conv") else "InnerProduct"
    if kind not in (*STEPS, "Concat", *NO_OPS, *ENDS):
        name = printable(layer.name)
        raise AnotherNetwork(path, f"its layer {name} is of type {kind!r}")
    return kind


def convolution(layer: Fields, source: str) -> Step:
    """Return the step of a Convolution; raises WeightsError if our convolution cannot compute it."""
    shape, _ = shape_and_bias(layer, source)
    if len(shape) != 4:
        raise WeightsError(f"{source} must have filters with four axes, got shape {brief(shape)}")
    filters, _, rows, columns = shape
    size = rows if rows == columns else (rows, columns)
    if not layer.HasField("convolution_param"):
        return convolution_step(filters, size, None, None, None)
    settings = layer.convolution_param
    if any(dilation != 1 for dilation in settings.dilation):
        raise WeightsError(f"{source} is dilated by {list(settings.dilation)}, which our convolutions are not")
    declared = both(settings, "kernel_size", "kernel", size)
    if declared != size:
        raise WeightsError(f"{source} has kernel_size {declared}, and filters of size {size}")
    stride, pad = both(settings, "stride", "stride", 1), both(settings, "pad", "pad", 0)
    return convolution_step(filters, size, stride, pad, settings.group)


def pooling(layer: Fields, source: str) -> Step:
    """Return the step of a Pooling; raises WeightsError for random pooling. By default, Caffe rounds windows up."""
    settings = layer.pooling_param
    if settings.pool not in (0, 1):
        raise WeightsError(f"{source} must be max or average pooling, got pool {settings.pool}")
    if settings.global_pooling:
        return Step("GlobalAveragePool" if settings.pool else "GlobalMaxPool")
    size = both(settings, "kernel_size", "kernel", 0)
    stride, pad = both(settings, "stride", "stride", 1), both(settings, "pad", "pad", 0)
    ceil = int(not settings.round_mode)
    if settings.pool:
        return Step("AveragePool", kernel_shape=size, strides=stride, pads=pad, ceil_mode=ceil)
    return max_pool_step(size, stride, pad, ceil)


def both(settings: Fields, name: str, short: str, default: Value) -> Value:
    """Return a setting for rows and columns as one number if both are equal, else as a tuple.

    Caffe has two notations: the repeated field `name`, and the fields `short`_h and `short`_w.
    """
    values = list(getattr(settings, name)) or [default]
    if settings.HasField(f"{short}_h") or settings.HasField(f"{short}_w"):
        values = [getattr(settings, f"{short}_h"), getattr(settings, f"{short}_w")]
    return values[0] if len(set(values)) == 1 else tuple(values)


def normalisation(layer: Fields, source: str) -> Step:
    """Return the step of an LRN; raises WeightsError unless it is across channels. Like ONNX, Caffe divides alpha."""
    settings = layer.lrn_param
    if settings.norm_region:
        raise WeightsError(f"{source} must normalise across channels, got norm_region {settings.norm_region}")
    return Step("LRN", size=settings.local_size, bias=settings.k, alpha=settings.alpha, beta=settings.beta)


def rectifier(layer: Fields, source: str) -> Step:
    """Return the step of a ReLU."""
    slope = layer.relu_param.negative_slope
    return Step("LeakyRelu", alpha=slope) if slope else Step("Relu")


def inner_product(layer: Fields, source: str) -> Step:
    """Return the step of an InnerProduct; raises WeightsError for transposed weights and inconsistent shapes."""
    settings = layer.inner_product_param
    shape, bias = shape_and_bias(layer, source)
    if settings.transpose or settings.axis != 1:
        raise WeightsError(
            f"{source} must be of axis 1 and not transposed, got {settings.axis} and {settings.transpose}"
        )
    if len(shape) < 2 or set(shape[:-2]) - {1} or shape[-2] != bias.size:
        raise WeightsError(f"{source} must have weights ({bias.size}, inputs) for its bias, got {brief(shape)}")
    return dense_step(bias.size)


STEPS: dict[str, Callable[[Fields, str], Step]] = {    # type -> function of the layer and its name in messages
    "Convolution": convolution, "InnerProduct": inner_product, "LRN": normalisation, "Pooling": pooling,
    "ReLU": rectifier,
}


def with_flatten(chain: Chain) -> Chain:
    """Insert Flatten before the first dense step, or after a final pooling. In Caffe, flattening is implicit."""
    steps = [step for _, step in chain]
    if all(step.parameters for step in steps):         # a file with only the layers that have weights
        return chain
    first = next((at for at, step in enumerate(steps) if step.operator == "Gemm"), len(steps))
    return (*chain[:first], ("flatten", flatten_step()), *chain[first:])


def identified(net: Fields, found: FoundNetwork, path: str | Path) -> str:
    """Identify the model from the steps, or from the name of the net if the file has only steps with weights."""
    steps = [step for _, step in found.chain]
    if not steps or not all(step.parameters for step in steps):
        model = model_of(steps, path)
        check_towers(found, model, path)
        return model
    name = printable(net.name)
    alike = [model for model in MODELS if not MODELS[model].outline().without_chain and has_weights_of(model, steps)]
    if len(alike) != 1 and name not in NET_NAMES:
        raise WeightsError(
            f"{path} has only layers with weights, so its name must identify the order of pooling and normalisation: "
            f"expected {' or '.join(NET_NAMES)}, got {name!r}"
        )
    return model_of(steps, path, only=alike[0] if len(alike) == 1 else NET_NAMES[name])


def has_weights_of(model: str, steps: Sequence[Step]) -> bool:
    """Whether the steps, all with weights, agree with those of a model that have weights."""
    mine, wanted = pairs_with(steps, model, only_weights=True)
    return same_steps(mine, wanted)


def check_towers(found: FoundNetwork, model: str, path: str | Path) -> None:
    """Raise AnotherNetwork unless the file has all auxiliary classifiers of a model, or none."""
    towers = towers_of(model)
    if found.towers and len(found.towers) != len(towers):
        raise AnotherNetwork(path, f"it has {len(found.towers)} side branches, {model} {len(towers)}")
    for (place, tower), (wanted_place, wanted) in zip(found.towers, towers, strict=False):
        size = comparable(found.chain[:place], MODELS[model].image_size)[1]
        mine, other = (one_class(comparable(chain, size)[0]) for chain in (tower, wanted))
        if place != wanted_place or not same_steps(mine, other):
            raise AnotherNetwork(path, f"its side branch with {tower[0][0]} differs from that of {model}")


# ---- arrays


def shape_and_bias(layer: Fields, source: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Return (declared shape of the weights, bias) of a layer."""
    if len(layer.blobs) != 2:
        raise WeightsError(f"{source} must have two blobs, weights and bias, got {len(layer.blobs)}")
    return shape_of(layer.blobs[0]), array_of(layer.blobs[1], f"{source}: its bias").reshape(-1)


def arrays_of(found: FoundNetwork, model: str, path: str | Path) -> dict[str, np.ndarray]:
    """Return name -> array of the parameters, those of auxiliary classifiers only if the file has them."""
    arrays = converted(chain_of(model), pairs_of(found.chain, found.layers, path), bgr=True)
    for (_, tower), (_, wanted) in zip(found.towers, towers_of(model), strict=False):
        arrays |= converted(wanted, pairs_of(tower, found.layers, path), bgr=False)
    return arrays


def pairs_of(chain: Chain, layers: Mapping[Step, Fields], path: str | Path) -> Iterator[Pair]:
    """Yield (weights, bias) of each step with weights in order, float32. Dense weights have shape (out, in)."""
    for name, step in weight_steps(chain):
        layer, source = layers[step], f"{path}: {name}"
        weights = array_of(layer.blobs[0], f"{source}: its weights")
        _, bias = shape_and_bias(layer, source)
        yield weights.reshape(weights.shape[-2:]) if step.operator == "Gemm" else weights, bias


def weight_shapes(net: Fields) -> tuple[list[int], int, bool]:
    """Return (filters of each convolution, number of dense layers, whether there is batch normalisation) of a file."""
    layers = [(V1_TYPES.get(layer.type), layer) for layer in net.layers]
    layers += [(printable(layer.type), layer) for layer in net.layer]
    found = [shape_of(layer.blobs[0]) for kind, layer in layers if kind == "Convolution" and layer.blobs]
    filters = [shape[0] if shape else 0 for shape in found]
    return filters, sum(kind == "InnerProduct" for kind, _ in layers), any(kind == "BatchNorm" for kind, _ in layers)


# ---- mean image


def mean_of(net: Fields, path: Path, model: str) -> tuple[np.ndarray, str]:
    """Return (mean image, its origin): from the channel means in the file, else that of the model or the folder."""
    image_size = MODELS[model].image_size
    for layer in [*net.layers, *net.layer]:
        settings = layer.transform_param
        if settings.scale != 1:
            raise WeightsError(f"{path} takes images multiplied by {settings.scale:g}; ours have values from 0 to 255")
        if settings.crop_size not in (0, image_size):
            raise WeightsError(f"{path} takes crops of {settings.crop_size} pixels, our network {image_size}")
        if settings.mean_value:                            # one value for all channels, or one per channel
            values = [*settings.mean_value] * (3 if len(settings.mean_value) == 1 else 1)
            if len(values) != 3:
                raise WeightsError(f"{path} must have a mean_value for each of 3 channels, got {len(values)}")
            return constant_mean(values), f"its own mean of each channel, BGR {', '.join(f'{v:g}' for v in values)}"
    return mean_beside(path, model)
