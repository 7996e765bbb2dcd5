"""ONNX: files exported by this package, which load bit for bit, and networks of other programs that equal ours.

The package onnx is an optional dependency. alexnet.pretrained checks for it before importing this module.
"""

from pathlib import Path

from onnx import ModelProto

from alexnet.pretrained.onnx import export, foreign
from alexnet.pretrained.onnx.export import save
from alexnet.pretrained.protobuf import contents, parsed
from alexnet.pretrained.weights import Weights, WeightsError

__all__ = ["load", "save"]


def load(path: Path, preprocessing: str | None = None) -> Weights:
    """Load the Weights of an ONNX file.

    Args:
        preprocessing: what images the network of another program takes; a name of alexnet.pretrained.preprocessing.

    Raises:
        WeightsError: the file contains none of our models, or does not state what images it takes.
    """
    model = ModelProto()
    parsed(model, contents(path), path, "ONNX file")
    if not model.graph.node:
        raise WeightsError(f"{path} is no ONNX file of a network: it has no graph (nor has a .solverstate of Caffe)")
    if model.producer_name != export.PRODUCER:
        return foreign.weights_of(model, path, preprocessing)
    if preprocessing is not None:
        raise WeightsError(f"{path} was exported by this package and states what images it takes; omit preprocessing")
    return export.weights_of(model, path)
