"""The Caffe protobuf messages that loading weights needs, and conversion of blobs to arrays.

Source: BVLC Caffe, src/caffe/proto/caffe.proto.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from alexnet.pretrained.protobuf import message_classes
from alexnet.pretrained.weights import WeightsError

Fields: TypeAlias = Any                 # a message of MESSAGES, whose classes exist only at run time

# In caffe.proto, data is a packed repeated float. Its wire format is that of bytes, so declaring it as bytes reads
# sixty million values in one piece. Names are strings in caffe.proto; declared as bytes, they need not be valid UTF-8.
# Enums are declared as int32, which has the same wire format.
MESSAGES = message_classes({
    "BlobShape": {"dim": "1 repeated int64"},
    "BlobProto": {
        "num": "1 optional int64", "channels": "2 optional int64", "height": "3 optional int64",
        "width": "4 optional int64", "data": "5 repeated bytes", "shape": "7 optional BlobShape",
        "double_data": "8 repeated bytes",
    },
    "ConvolutionParameter": {
        "pad": "3 repeated uint32", "kernel_size": "4 repeated uint32", "group": "5 optional uint32 1",
        "stride": "6 repeated uint32", "pad_h": "9 optional uint32", "pad_w": "10 optional uint32",
        "kernel_h": "11 optional uint32", "kernel_w": "12 optional uint32", "stride_h": "13 optional uint32",
        "stride_w": "14 optional uint32", "dilation": "18 repeated uint32",
    },
    "ConcatParameter": {"concat_dim": "1 optional uint32 1", "axis": "2 optional int32 1"},
    "InnerProductParameter": {"axis": "5 optional int32 1", "transpose": "6 optional bool"},
    "LRNParameter": {
        "local_size": "1 optional uint32 5", "alpha": "2 optional float 1", "beta": "3 optional float 0.75",
        "norm_region": "4 optional int32", "k": "5 optional float 1",
    },
    "PoolingParameter": {
        "pool": "1 optional int32", "kernel_size": "2 repeated uint32", "stride": "3 repeated uint32",
        "pad": "4 repeated uint32", "kernel_h": "5 optional uint32", "kernel_w": "6 optional uint32",
        "stride_h": "7 optional uint32", "stride_w": "8 optional uint32", "pad_h": "9 optional uint32",
        "pad_w": "10 optional uint32", "global_pooling": "12 optional bool",
        "round_mode": "13 optional int32",
    },
    "ReLUParameter": {"negative_slope": "1 optional float"},
    "TransformationParameter": {
        "scale": "1 optional float 1", "crop_size": "3 optional uint32", "mean_value": "5 repeated float",
    },
    "V0LayerParameter": {"name": "1 optional bytes"},
    "V1LayerParameter": {
        "layer": "1 optional V0LayerParameter", "bottom": "2 repeated bytes", "top": "3 repeated bytes",
        "name": "4 optional bytes", "type": "5 optional int32", "blobs": "6 repeated BlobProto",
        "concat_param": "9 optional ConcatParameter", "convolution_param": "10 optional ConvolutionParameter",
        "inner_product_param": "17 optional InnerProductParameter", "lrn_param": "18 optional LRNParameter",
        "pooling_param": "19 optional PoolingParameter", "relu_param": "30 optional ReLUParameter",
        "transform_param": "36 optional TransformationParameter",
    },
    "LayerParameter": {
        "name": "1 optional bytes", "type": "2 optional bytes", "bottom": "3 repeated bytes", "top": "4 repeated bytes",
        "blobs": "7 repeated BlobProto", "transform_param": "100 optional TransformationParameter",
        "concat_param": "104 optional ConcatParameter", "convolution_param": "106 optional ConvolutionParameter",
        "inner_product_param": "117 optional InnerProductParameter", "lrn_param": "118 optional LRNParameter",
        "pooling_param": "121 optional PoolingParameter", "relu_param": "123 optional ReLUParameter",
    },
    "NetParameter": {
        "name": "1 optional bytes", "layers": "2 repeated V1LayerParameter", "layer": "100 repeated LayerParameter",
    },
})


def array_of(blob: Fields, source: str) -> npt.NDArray[np.float32]:
    """Return a BlobProto as a float32 array.

    Args:
        source: name of the blob in error messages.

    Raises:
        WeightsError: the shape does not match the number of values.
    """
    shape = shape_of(blob)
    kind, pieces = ("<f4", blob.data) if blob.data else ("<f8", blob.double_data)
    values = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    needed = math.prod(shape) * np.dtype(kind).itemsize
    if not 1 <= len(shape) <= 4 or min(shape) < 1 or len(values) != needed:
        held = len(values) // np.dtype(kind).itemsize
        raise WeightsError(f"{source} must have a shape of its values, got {held} values and the shape {brief(shape)}")
    return np.frombuffer(values, kind).astype(np.float32, copy=False).reshape(shape)


def shape_of(blob: Fields) -> tuple[int, ...]:
    """Return the shape of a blob: from the field `shape`, or from the four fields of older files."""
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    return blob.num, blob.channels, blob.height, blob.width


def brief(shape: Sequence[int]) -> str:
    """Format a shape for an error message; a malicious file may contain a very long one."""
    return str(shape) if len(shape) <= 8 else f"({', '.join(map(str, shape[:8]))}, …) of {len(shape)} lengths"
