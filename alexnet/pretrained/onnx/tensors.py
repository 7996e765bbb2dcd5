"""Read the float32 arrays of an ONNX file."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, TensorProto

from alexnet.pretrained.weights import WeightsError


def tensors_of(graph: GraphProto, path: Path) -> dict[str, TensorProto]:
    """Return name -> TensorProto of the initializers of a graph; raises WeightsError for duplicate names."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if len(tensors) != len(graph.initializer):
        raise WeightsError(f"{path} has several initializers of one name")
    return tensors


def array_of(tensor: TensorProto, source: str) -> npt.NDArray[np.float32]:
    """Return a TensorProto as a float32 array, which may be read-only.

    Args:
        source: name of the tensor in error messages.

    Raises:
        WeightsError: the tensor is malformed, is not float32, or stores its data in another file.
    """
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise WeightsError(f"{source} is stored in another file, which is not read; save it with the data inside")
    if tensor.data_type != TensorProto.FLOAT:
        kinds = {number: name for name, number in TensorProto.DataType.items()}
        kind = kinds.get(tensor.data_type, tensor.data_type)
        raise WeightsError(f"{source} must be float32, got {kind}; quantised and half networks are not read")
    shape, raw = tuple(tensor.dims[:5]), tensor.raw_data
    held = len(raw) / 4 if raw else len(tensor.float_data)
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) != held:
        raise WeightsError(f"{source} must have a shape of its values, got {held:.10g} values and the shape {shape}")
    values = np.frombuffer(raw, "<f4") if raw else np.fromiter(tensor.float_data, np.float32)
    return values.reshape(shape)
