"""The operations of a network as other frameworks write them: ONNX operators with their attributes.

Caffe and ONNX have one operation per layer where ours may have several: Conv is a convolution, ReLU and max pooling.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Value: TypeAlias = object               # a number; in steps of a file also what a hostile file may contain, or None
Chain: TypeAlias = Sequence[tuple[str, "Step"]]            # name of the layer, step


class Step:
    """One operation of a network.

    operator    name of the ONNX operator, such as Conv
    parameters  names of the layer's parameters, which are the inputs after x: ("W", "b")
    outputs     number of channels or features of a step with weights, else None
    branches    of Concat: chains on the same input, whose outputs are concatenated
    attributes  ONNX attributes. One number stands for all axes: kernel_shape=3 is [3, 3]. An absent attribute is 0.
                None: a file does not specify the value.

    Source: onnx.ai/onnx/operators.
    """

    def __init__(
        self,
        operator: str,
        *,
        parameters: tuple[str, ...] = (),
        outputs: int | None = None,
        branches: tuple[Chain, ...] = (),
        **attributes: Value,
    ) -> None:
        self.operator = operator
        self.parameters = parameters
        self.outputs = outputs
        self.branches = branches
        self.attributes: Mapping[str, Value] = attributes


def convolution_step(filters: int, size: Value, stride: Value, pad: Value, groups: Value) -> Step:
    """Return a cross-correlation with size x size filters, plus a bias."""
    return Step(
        "Conv", parameters=("W", "b"), outputs=filters, kernel_shape=size, strides=stride, pads=pad, group=groups
    )


def max_pool_step(size: Value, stride: Value, pad: Value = 0) -> Step:
    """Return the maximum over windows of size x size pixels."""
    if not pad:
        return Step("MaxPool", kernel_shape=size, strides=stride)
    return Step("MaxPool", kernel_shape=size, strides=stride, pads=pad)


def dense_step(outputs: int) -> Step:
    """Return W'x + b."""
    return Step("Gemm", parameters=("W", "b"), outputs=outputs)


def flatten_step() -> Step:
    """Return the reshaping of (channel, row, column) to one feature axis; the channel varies slowest."""
    return Step("Flatten", axis=1)
