"""Load Caffe weights: bvlc_reference_caffenet.caffemodel, bvlc_alexnet.caffemodel, and networks fine-tuned from them.

A .caffemodel is a NetParameter with the settings and blobs of each layer, in `layers` (as in the published files) or in
`layer`. The model is identified from the layers and their constants. Filters are (out, in / groups, row, column) for
BGR images, dense weights are (out, in). The converted network takes RGB images and computes the same outputs as Caffe.

Source: BVLC Caffe, src/caffe/proto/caffe.proto and models/*/readme.md.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from alexnet.models import MODELS
from alexnet.nn.layer import Step, Value, convolution_step, dense_step, flatten_step, max_pool_step
from alexnet.pretrained.caffe.layout import parameters
from alexnet.pretrained.caffe.mean import constant_mean, mean_beside
from alexnet.pretrained.caffe.messages import MESSAGES, Fields, array_of, brief, shape_of
from alexnet.pretrained.graph import model_of
from alexnet.pretrained.protobuf import contents, parsed, printable
from alexnet.pretrained.weights import Weights, WeightsError, checked

PUBLISHED = {                           # SHA-1 -> file, from the readme.md of each model
    "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46": "bvlc_reference_caffenet.caffemodel",
    "9116a64c0fbe4459d18f4bb6b56d647b63920377": "bvlc_alexnet.caffemodel",
}
NET_NAMES = {"CaffeNet": "caffenet", "AlexNet": "bvlc_alexnet"}
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


def load(path: Path) -> Weights:
    """Load the Weights of a .caffemodel. The conversion is exact; raises WeightsError."""
    data = contents(path)
    if all(byte >= 0x20 or byte in b"\t\n\r" for byte in data[:512]):
        raise WeightsError(f"{path} is a text, as a prototxt, which has no weights; they are in a .caffemodel")
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    net: Fields = parsed(MESSAGES["NetParameter"](), data, path, ".caffemodel")
    del data                                           # frees memory: the message has a copy
    layers = layers_and_steps(net, path)
    found = with_flatten([step for _, step in layers])
    model = identified(net, found, path)
    arrays = parameters(pairs_of([(layer, step) for layer, step in layers if step.parameters], path), model)
    mean, mean_origin = mean_of(net, path, MODELS[model].image_size)
    return checked(Weights(
        model=model,
        arrays=arrays,
        mean=mean,
        origin=f"{model} of Caffe's {path.name}, {publication(sha1)}, with {mean_origin}",
    ), path)


def publication(sha1: str) -> str:
    """Describe whether a file is one of those that Caffe published."""
    if sha1 in PUBLISHED:
        return f"the published {PUBLISHED[sha1]}"
    return f"none of the files that Caffe published (sha1 {sha1})"


# ---- identifying the model


def layers_and_steps(net: Fields, path: str | Path) -> list[tuple[Fields, Step]]:
    """Return (layer, step) of each layer that computes something, in order.

    The input of each layer must be the output of the previous one. This is checked only where the file names inputs.

    Raises:
        WeightsError: the layers are not a chain of known layers.
    """
    chain: list[tuple[Fields, Step]] = []
    given: set[bytes] = set()
    for layer in [*net.layers, *net.layer]:
        kind = type_of(layer, path)
        if kind in ENDS:
            given |= set(layer.top)
            continue
        if layer.bottom and given and layer.bottom[0] not in given:
            what = f"{printable(layer.name)} takes {printable(layer.bottom[0])}"
            raise WeightsError(f"{path} is another network than ours, no chain of layers: {what}")
        given = set(layer.top) | (given if kind == "Split" else set())
        if kind in STEPS:
            chain.append((layer, STEPS[kind](layer, f"{path}: {printable(layer.name)}")))
    return chain


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
    if kind not in STEPS and kind not in NO_OPS and kind not in ENDS:
        name = printable(layer.name)
        raise WeightsError(f"{path} is another network than ours: its layer {name} is of type {kind!r}")
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
    """Return the step of a Pooling; raises WeightsError unless it is max pooling."""
    settings = layer.pooling_param
    if settings.pool or settings.global_pooling:
        raise WeightsError(f"{source} must be max pooling of windows, got pool {settings.pool} or global_pooling")
    size = both(settings, "kernel_size", "kernel", 0)
    return max_pool_step(size, both(settings, "stride", "stride", 1), both(settings, "pad", "pad", 0))


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


def with_flatten(steps: Sequence[Step]) -> list[Step]:
    """Insert Flatten before the first dense step. In Caffe, InnerProduct flattens its input implicitly."""
    first = next((at for at, step in enumerate(steps) if step.operator == "Gemm"), len(steps))
    only_weights = all(step.parameters for step in steps)
    return list(steps) if only_weights else [*steps[:first], flatten_step(), *steps[first:]]


def identified(net: Fields, found: Sequence[Step], path: str | Path) -> str:
    """Identify the model from the steps, or from the name of the net if the file has only steps with weights."""
    if not found or not all(step.parameters for step in found):
        return model_of(found, path)
    name = printable(net.name)
    if name not in NET_NAMES:
        raise WeightsError(
            f"{path} has only layers with weights, so its name must identify the order of pooling and normalisation: "
            f"expected {' or '.join(NET_NAMES)}, got {name!r}"
        )
    return model_of(found, path, only=NET_NAMES[name])


# ---- arrays


def shape_and_bias(layer: Fields, source: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Return (declared shape of the weights, bias) of a layer."""
    if len(layer.blobs) != 2:
        raise WeightsError(f"{source} must have two blobs, weights and bias, got {len(layer.blobs)}")
    return shape_of(layer.blobs[0]), array_of(layer.blobs[1], f"{source}: its bias").reshape(-1)


def pairs_of(
    layers: Sequence[tuple[Fields, Step]], path: str | Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (weights, bias) of each layer in order, float32. Dense weights have shape (out, in)."""
    for layer, step in layers:
        source = f"{path}: {printable(layer.name)}"
        weights = array_of(layer.blobs[0], f"{source}: its weights")
        _, bias = shape_and_bias(layer, source)
        yield weights.reshape(weights.shape[-2:]) if step.operator == "Gemm" else weights, bias


# ---- mean image


def mean_of(net: Fields, path: Path, image_size: int) -> tuple[np.ndarray, str]:
    """Return (mean image, its origin): from the channel means in the file, else from a file in the same folder."""
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
    return mean_beside(path)
