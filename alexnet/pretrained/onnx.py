"""ONNX: files exported by this package, which load bit for bit, and AlexNet and CaffeNet of the ONNX model zoo.

The package onnx is an optional dependency. alexnet.pretrained checks for it before importing this module.
"""

from onnx import ModelProto

from alexnet.pretrained import onnx_export, onnx_zoo
from alexnet.pretrained.protobuf import contents, parsed
from alexnet.pretrained.weights import WeightsError

save = onnx_export.save


def load(path):
    """Load the Weights of an ONNX file; raises WeightsError if it contains none of our models."""
    model = parsed(ModelProto(), contents(path), path, "ONNX file")
    if not model.graph.node:
        raise WeightsError(f"{path} is no ONNX file of a network: it has no graph (nor has a .solverstate of Caffe)")
    reader = onnx_export if model.producer_name == onnx_export.PRODUCER else onnx_zoo
    return reader.weights_of(model, path)
