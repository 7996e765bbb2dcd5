"""The Caffe protobuf messages that loading weights needs, and conversion of blobs to arrays.

Source: BVLC Caffe, src/caffe/proto/caffe.proto.
"""

import math

import numpy as np

from alexnet.pretrained.protobuf import messages
from alexnet.pretrained.weights import WeightsError

# In caffe.proto, data is a packed repeated float. Its wire format is that of bytes, so declaring it as bytes reads
# sixty million values in one piece. Names are strings in caffe.proto; declared as bytes, they need not be valid UTF-8.
MESSAGES = messages("""
message BlobShape {
  repeated int64 dim = 1;
}
message BlobProto {
  optional int64 num = 1;
  optional int64 channels = 2;
  optional int64 height = 3;
  optional int64 width = 4;
  repeated bytes data = 5;
  optional BlobShape shape = 7;
  repeated bytes double_data = 8;
}
message ConvolutionParameter {
  repeated uint32 pad = 3;
  repeated uint32 kernel_size = 4;
  optional uint32 group = 5 [default = 1];
  repeated uint32 stride = 6;
  optional uint32 pad_h = 9;
  optional uint32 pad_w = 10;
  optional uint32 kernel_h = 11;
  optional uint32 kernel_w = 12;
  optional uint32 stride_h = 13;
  optional uint32 stride_w = 14;
  repeated uint32 dilation = 18;
}
message InnerProductParameter {
  optional int32 axis = 5 [default = 1];
  optional bool transpose = 6;
}
message LRNParameter {
  optional uint32 local_size = 1 [default = 5];
  optional float alpha = 2 [default = 1];
  optional float beta = 3 [default = 0.75];
  optional int32 norm_region = 4;
  optional float k = 5 [default = 1];
}
message PoolingParameter {
  optional int32 pool = 1;
  repeated uint32 kernel_size = 2;
  repeated uint32 stride = 3;
  repeated uint32 pad = 4;
  optional uint32 kernel_h = 5;
  optional uint32 kernel_w = 6;
  optional uint32 stride_h = 7;
  optional uint32 stride_w = 8;
  optional uint32 pad_h = 9;
  optional uint32 pad_w = 10;
  optional bool global_pooling = 12;
}
message ReLUParameter {
  optional float negative_slope = 1;
}
message TransformationParameter {
  optional float scale = 1 [default = 1];
  optional uint32 crop_size = 3;
  repeated float mean_value = 5;
}
message V0LayerParameter {
  optional bytes name = 1;
}
message V1LayerParameter {
  optional V0LayerParameter layer = 1;
  repeated bytes bottom = 2;
  repeated bytes top = 3;
  optional bytes name = 4;
  optional int32 type = 5;
  repeated BlobProto blobs = 6;
  optional ConvolutionParameter convolution_param = 10;
  optional InnerProductParameter inner_product_param = 17;
  optional LRNParameter lrn_param = 18;
  optional PoolingParameter pooling_param = 19;
  optional ReLUParameter relu_param = 30;
  optional TransformationParameter transform_param = 36;
}
message LayerParameter {
  optional bytes name = 1;
  optional bytes type = 2;
  repeated bytes bottom = 3;
  repeated bytes top = 4;
  repeated BlobProto blobs = 7;
  optional TransformationParameter transform_param = 100;
  optional ConvolutionParameter convolution_param = 106;
  optional InnerProductParameter inner_product_param = 117;
  optional LRNParameter lrn_param = 118;
  optional PoolingParameter pooling_param = 121;
  optional ReLUParameter relu_param = 123;
}
message NetParameter {
  optional bytes name = 1;
  repeated V1LayerParameter layers = 2;
  repeated LayerParameter layer = 100;
}
""")


def array_of(blob, source):
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


def shape_of(blob):
    """Return the shape of a blob: from the field `shape`, or from the four fields of older files."""
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    return blob.num, blob.channels, blob.height, blob.width


def brief(shape):
    """Format a shape for an error message; a malicious file may contain a very long one."""
    return str(shape) if len(shape) <= 8 else f"({', '.join(map(str, shape[:8]))}, …) of {len(shape)} lengths"
