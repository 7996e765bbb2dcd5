"""ONNX: files exported by this package, which load bit for bit, and AlexNet and CaffeNet of the ONNX model zoo.

The package onnx is an optional dependency. alexnet.pretrained checks for it before importing this module.
"""

from pathlib import Path

from onnx import ModelProto

from alexnet.pretrained.onnx import export, zoo
from alexnet.pretrained.onnx.export import save
from alexnet.pretrained.protobuf import contents, parsed
from alexnet.pretrained.weights import Weights, WeightsError

__all__ = ["load", "save"]


def load(path: Path) -> Weights:
    """Load the Weights of an ONNX file; raises WeightsError if it contains none of our models."""
    model = ModelProto()
    parsed(model, contents(path), path, "ONNX file")
    if not model.graph.node:
        raise WeightsError(f"{path} is no ONNX file of a network: it has no graph (nor has a .solverstate of Caffe)")
    reader = export if model.producer_name == export.PRODUCER else zoo
    return reader.weights_of(model, path)
