"""The float32 arrays of an ONNX file."""

import math

import numpy as np
from onnx import TensorProto

from alexnet.pretrained.weights import WeightsError


def tensors_of(graph, path):
    """Name -> TensorProto of the graph's initializers; raises WeightsError where two have one name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if len(tensors) != len(graph.initializer):
        raise WeightsError(f"{path} has several initializers of one name")
    return tensors


def array_of(tensor, source):
    """The float32 array of a TensorProto, read-only; raises WeightsError, also for data in another file.

    source  what the message calls the tensor
    """
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise WeightsError(f"{source} lies in another file, which is not followed; save it with the data inside")
    if tensor.data_type != TensorProto.FLOAT:
        kinds = {number: name for name, number in TensorProto.DataType.items()}
        kind = kinds.get(tensor.data_type, tensor.data_type)
        raise WeightsError(f"{source} must be float32, got {kind}; quantised and half networks are not read")
    shape, raw = tuple(tensor.dims[:5]), tensor.raw_data
    held = len(raw) / 4 if raw else len(tensor.float_data)
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) != held:
        raise WeightsError(f"{source} must have a shape of its values, got {held:.10g} values and the shape {shape}")
    values = np.frombuffer(raw, "<f4") if raw else np.fromiter(tensor.float_data, np.float32, held)
    return values.reshape(shape)
