"""Export networks to ONNX for any runtime. The graph includes the mean image and the softmax.

    images         input: float32 (batch, 3, size, size), RGB, grey levels from 0 to 255; size is 227 or 224
    probabilities  output: float32 (batch, class)
    logits         output: float32 (batch, class)

The nodes are created from the layers of the model. Auxiliary classifiers are used only in training; the file has
neither nodes nor weights of them. The file stores the full mean image, 3 x 256 x 256, so that loading restores it; the
graph subtracts its centre, and multiplies by the scale of each channel if there is one. metadata_props store the other
fields of Weights, and the CRC-32 of every tensor and of the metadata. Opset 13 of IR 7: ONNX 1.8 (2020) and later.

Source: onnx.ai/onnx/operators.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from alexnet.data.augment import IMAGE_SIZE, UNSCALED
from alexnet.models import MODELS
from alexnet.native.untrusted import checksum, parse_json
from alexnet.nn.layer import Chain, Step
from alexnet.pretrained.graph import chain_of
from alexnet.pretrained.onnx.tensors import array_of, tensors_of
from alexnet.pretrained.weights import Weights, WeightsError, check_model, checked, whole

PRODUCER = "alexnet-pytensor"
VERSION = 1
OPSET, IR_VERSION = 13, 7
METADATA = {"format_version", "model", "resize", "origin", "class_names", "crc32"}
MEAN, SCALE, FIRST, LAST, AXES = "mean", "scale", "centre.first", "centre.last", "centre.axes"
AXES_OF = {"kernel_shape": 2, "strides": 2, "pads": 4}             # attribute -> numbers that ONNX lists
TO_ONNX, FROM_ONNX = (3, 0, 1, 2), (1, 2, 3, 0)       # filters (in, row, column, out) <-> (out, in, row, column)


# ---- the graph


def nodes_of(model: str, scaled: bool = False) -> Iterator[NodeProto]:
    """Yield the nodes of a model of alexnet.models.

    Args:
        scaled: multiply each channel by its scale.

    Raises:
        WeightsError: ONNX cannot express a layer.
    """
    yield helper.make_node("Slice", [MEAN, FIRST, LAST, AXES], ["centre"], "centre")
    yield helper.make_node("Sub", ["images", "centre"], ["centred"], "centred")
    if scaled:
        yield helper.make_node("Mul", ["centred", SCALE], ["scaled"], "scaled")
    yield from chain_nodes(chain_of(model), "scaled" if scaled else "centred", "logits")
    yield helper.make_node("Softmax", ["logits"], ["probabilities"], "probabilities", axis=1)


def chain_nodes(chain: Chain, below: str, end: str) -> Iterator[NodeProto]:
    """Yield the nodes of a chain.

    Args:
        below: name of the input tensor.
        end: name of the output tensor.
    """
    for at, (name, step) in enumerate(chain):
        above = end if at == len(chain) - 1 else f"{name}.{step.operator.lower()}"
        inputs = [below, *(f"{name}.{parameter}" for parameter in step.parameters)]
        if step.branches:
            inputs = [f"{branch[-1][0]}.end" if branch else below for branch in step.branches]
            for branch, output in zip(step.branches, inputs, strict=True):
                yield from chain_nodes(branch, below, output)
        yield helper.make_node(step.operator, inputs, [above], above, **attributes_of(step))
        below = above


def attributes_of(step: Step) -> dict[str, Any]:
    """Return the attributes of a step with one number per axis."""
    return {name: [value] * AXES_OF[name] if name in AXES_OF else value for name, value in step.attributes.items()}


def model_proto(weights: Weights, mean: np.ndarray) -> ModelProto:
    """Return the ModelProto of some Weights with their mean image."""
    model = MODELS[weights.model]
    images: list[int | str | None] = ["batch", model.channels, model.image_size, model.image_size]
    outputs = ["probabilities", "logits"]
    graph = helper.make_graph(
        list(nodes_of(weights.model, weights.scale != UNSCALED)),
        weights.model,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, images)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", weights.classes]) for name in outputs],
    )
    opset = helper.make_opsetid("", OPSET)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name=PRODUCER)
    for name, array in tensors_for(weights, mean, model.image_size):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        proto.graph.initializer.add(name=name, dims=array.shape, data_type=kind, raw_data=array.tobytes())
    helper.set_model_props(proto, metadata_of(weights, proto.graph))
    return proto


def tensors_for(weights: Weights, mean: np.ndarray, image_size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of each initializer."""
    auxiliary = MODELS[weights.model].outline().auxiliary
    for name, array in weights.arrays.items():
        if name not in auxiliary:
            yield name, array.transpose(TO_ONNX) if array.ndim == 4 else array
    yield MEAN, mean
    if weights.scale != UNSCALED:
        yield SCALE, np.array(weights.scale, np.float32).reshape(3, 1, 1)
    first = (IMAGE_SIZE - image_size) // 2             # first row and column of alexnet.data.augment.centre_crop
    for name, values in ((FIRST, [first] * 2), (LAST, [first + image_size] * 2), (AXES, [1, 2])):
        yield name, np.array(values, np.int64)


# ---- the file


def save(weights: Weights, path: Path) -> None:
    """Write Weights to an ONNX file atomically; raises WeightsError."""
    if weights.mean is None:
        raise WeightsError(f"{weights.origin} comes without a mean image, which ONNX needs; give it with --mean FILE")
    content = model_proto(weights, weights.mean).SerializeToString()
    with whole(path) as partial:
        partial.write_bytes(content)


def metadata_of(weights: Weights, graph: GraphProto) -> dict[str, str]:
    """Return the metadata of Weights and the checksums, as name -> string."""
    metadata = {
        "format_version": str(VERSION),
        "model": weights.model,
        "resize": weights.resize,
        "origin": weights.origin,
        "class_names": json.dumps(weights.class_names),
        "crc32": json.dumps({tensor.name: checksum(tensor.raw_data) for tensor in graph.initializer}),
    }
    if weights.scale != UNSCALED:
        metadata[SCALE] = json.dumps(weights.scale)
    return metadata | {"metadata_crc32": checksum_of(metadata)}


def checksum_of(metadata: dict[str, str]) -> str:
    """Return the checksum of the metadata."""
    return checksum(json.dumps(metadata, sort_keys=True).encode())


def weights_of(proto: ModelProto, path: Path) -> Weights:
    """Return the Weights of a ModelProto exported by this module, with all checksums verified; raises WeightsError."""
    metadata = checked_metadata(proto, path)
    if list(proto.graph.node) != list(nodes_of(metadata["model"], SCALE in metadata)):
        raise WeightsError(f"{path} is an export whose graph was changed; load the weights it was exported from")
    tensors = tensors_of(proto.graph, path)
    if {name: checksum(tensor.raw_data) for name, tensor in tensors.items()} != metadata["crc32"]:
        raise WeightsError(f"{path} is damaged: its tensors are not as they were saved (CRC-32)")
    arrays = {
        name: our_layout(array_of(tensor, f"{path}: {name}"))
        for name, tensor in tensors.items()
        if name not in (SCALE, FIRST, LAST, AXES)
    }
    mean = arrays.pop(MEAN, None)
    return checked(Weights(
        model=metadata["model"],
        arrays=arrays,
        mean=mean,
        class_names=metadata["class_names"],
        resize=metadata["resize"],
        origin=metadata["origin"] or f"{metadata['model']} of {path.name}",
        scale=metadata.get(SCALE, UNSCALED),
    ), path)


def checked_metadata(proto: ModelProto, path: Path) -> dict[str, Any]:
    """Return name -> value of the metadata written by metadata_of.

    Raises:
        WeightsError: the metadata are damaged or of another version.
    """
    pairs = ((prop.key, prop.value) for prop in proto.metadata_props)
    # values that are not valid UTF-8 are not str
    metadata = {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}
    if metadata.pop("metadata_crc32", None) != checksum_of(metadata):
        raise WeightsError(f"{path} is damaged: its metadata are not as they were saved (CRC-32)")
    if metadata.keys() - {SCALE} != METADATA or metadata["format_version"] != str(VERSION):
        version = metadata.get("format_version")
        raise WeightsError(f"{path} has format version {version}, this program reads {VERSION}: use a newer one")
    check_model(metadata["model"], path)
    try:
        lists = {"class_names", "crc32", SCALE} & metadata.keys()
        return metadata | {name: parse_json(metadata[name]) for name in lists}
    except ValueError as error:
        raise WeightsError(f"{path} has metadata that are no JSON") from error


def our_layout(array: np.ndarray) -> np.ndarray:
    """Convert the axes of filters from ONNX's order."""
    return np.ascontiguousarray(array.transpose(FROM_ONNX)) if array.ndim == 4 else array
