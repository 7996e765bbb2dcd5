"""Read the float32 arrays of an ONNX file."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, TensorProto

from alexnet.pretrained.protobuf import printable
from alexnet.pretrained.weights import WeightsError


def tensors_of(graph: GraphProto, path: Path) -> dict[str, TensorProto]:
    """Return name -> TensorProto of the initializers of a graph; raises WeightsError for duplicate names."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if len(tensors) != len(graph.initializer):
        raise WeightsError(f"{path} has several initializers of one name")
    return tensors


def array_of(tensor: TensorProto, source: str, folder: Path | None = None) -> npt.NDArray[np.float32]:
    """Return a TensorProto as a float32 array, which may be read-only.

    Args:
        source: name of the tensor in error messages.
        folder: where a file with the values may be; None if they must be in the TensorProto.

    Raises:
        WeightsError: the tensor is malformed, is not float32, or its values are in a file elsewhere.
    """
    if tensor.data_type != TensorProto.FLOAT:
        kinds = {number: name for name, number in TensorProto.DataType.items()}
        kind = kinds.get(tensor.data_type, tensor.data_type)
        raise WeightsError(f"{source} must be float32, got {kind}; quantised and half networks are not read")
    shape, raw = tuple(tensor.dims[:5]), tensor.raw_data
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        return external(tensor, shape, source, folder)
    held = len(raw) / 4 if raw else len(tensor.float_data)
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) != held:
        raise WeightsError(f"{source} must have a shape of its values, got {held:.10g} values and the shape {shape}")
    values = np.frombuffer(raw, "<f4") if raw else np.fromiter(tensor.float_data, np.float32)
    return values.reshape(shape)


def external(
    tensor: TensorProto, shape: tuple[int, ...], source: str, folder: Path | None
) -> npt.NDArray[np.float32]:
    """Return the values that a TensorProto stores in a file in `folder`; raises WeightsError.

    Source: onnx/docs/ExternalData.md.
    """
    entries = {each.key: each.value for each in tensor.external_data}
    location = entries.get("location", "")
    is_name = location and printable(location) == location == Path(location).name and location != ".."
    if folder is None or not is_name:
        raise WeightsError(f"{source} is stored in another file, which is not read; save it with the data inside")
    file = folder / location
    count = math.prod(shape)
    offset, length = number(entries.get("offset", "0")), number(entries.get("length", str(4 * count)))
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or length != 4 * count or offset < 0:
        raise WeightsError(f"{source} must have a shape of its values, got {length} bytes and the shape {shape}")
    try:
        if not file.is_file():
            raise WeightsError(f"{source} is stored in {file}, which is missing; keep both files in one folder")
        if offset + length > file.stat().st_size:
            raise WeightsError(f"{file} ends before the values of {source}")
        return np.fromfile(file, "<f4", count, offset=offset).reshape(shape)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}") from error


def number(text: str) -> int:
    """Return a text of at most 18 digits as a number, else -1."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else -1
