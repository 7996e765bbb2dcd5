"""What a layer is: the contract of all layers, and a layer as the operations that other frameworks write.

Caffe and ONNX have one operation per layer where ours may have several: Conv is a convolution, ReLU and max pooling.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeAlias

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from alexnet.nn.parameter import Parameter

Shape: TypeAlias = tuple[int, ...]      # of activations, without the batch axis: (channels, rows, columns), (features,)
Value: TypeAlias = object               # a number; in steps of a file also what a hostile file may contain, or None
Chain: TypeAlias = Sequence[tuple[str, "Step"]]            # name of the layer, step


@dataclass(frozen=True)
class Training:
    """The state of one training step, which stochastic layers and layers with running statistics need.

    seed     integer scalar, symbolic or not: differs between runs and workers
    step     integer scalar, symbolic or not: differs between all passes of a training
    updates  a layer with running statistics appends (variable, new value)
    outputs  name -> output of each layer with parameters, which Sequential adds
    """

    seed: object
    step: object
    updates: list[tuple[SharedVariable, TensorVariable]] = field(default_factory=list)
    outputs: dict[str, TensorVariable] = field(default_factory=dict)


class LayerSummary(NamedTuple):
    """One row of `python -m alexnet summary`."""

    name: str
    shape: Shape            # of the output
    parameters: int         # without running statistics
    macs: int               # multiply-adds per image in the forward pass


class Layer(ABC):
    """A function of activations, with its parameters.

    kind        start of the layer's name; Sequential appends a number: conv1
    parameters  Parameters with the names W, b …, running statistics last; Sequential puts the layer's name before
                them: conv1.W
    depth       number of layers that it counts as in the numbering
    """

    kind: ClassVar[str]
    parameters: tuple[Parameter, ...] = ()

    @property
    def depth(self) -> int:
        """1 if the layer has parameters, else 0."""
        return int(bool(self.parameters))

    @abstractmethod
    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        """Return the activations after the layer.

        Args:
            x: float32 (channel, row, column, batch) or (feature, batch).
            training: state of the training step; None in validation.
        """

    @abstractmethod
    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        """Yield the rows of the layer in the summary for an input of `shape`; the last one has the output's shape.

        The name of a row is a kind, such as conv or pool. Sequential appends the layer's number.
        """

    def steps(self) -> "Iterator[Step]":
        """Yield the layer as ONNX operators. None: the layer does nothing outside training.

        Raises:
            NotImplementedError: the layer has no form in ONNX.
        """
        raise NotImplementedError(f"a layer {type(self).__name__} has no form in ONNX or Caffe")

    def row(self, shape: Shape, macs: int = 0) -> LayerSummary:
        """Return the LayerSummary of a layer with one row, from the shape of its output."""
        learned = sum(parameter.size for parameter in self.parameters if not parameter.running)
        return LayerSummary(self.kind, shape, learned, macs)


class Step:
    """One operation of a network.

    operator    name of the ONNX operator, such as Conv
    parameters  names of the layer's parameters, which are the inputs after x: ("W", "b")
    outputs     number of channels or features of a step with weights, else None
    branches    of Concat and Add: chains on the same input, whose outputs are concatenated or added
    attributes  ONNX attributes. One number stands for all axes: kernel_shape=3 is [3, 3]. An absent attribute is 0.
                None: a file does not specify the value.

    Source: onnx.ai/onnx/operators.
    """

    def __init__(
        self, operator: str, *, parameters: tuple[str, ...] = (), outputs: int | None = None,
        branches: tuple[Chain, ...] = (), **attributes: Value,
    ) -> None:
        self.operator = operator
        self.parameters = parameters
        self.outputs = outputs
        self.branches = branches
        self.attributes: Mapping[str, Value] = attributes

    def replaced(self, attributes: Mapping[str, Value], outputs: int | None = None) -> "Step":
        """Return a copy without branches in which these attributes, and `outputs` if it is given, are replaced."""
        copy = Step(self.operator, parameters=self.parameters, outputs=self.outputs if outputs is None else outputs)
        copy.attributes = {**self.attributes, **attributes}
        return copy


def convolution_step(
    filters: int, size: Value, stride: Value, pad: Value, groups: Value, biased: bool = True
) -> Step:
    """Return a cross-correlation with size x size filters, plus a bias unless `biased` is false."""
    names = ("W", "b") if biased else ("W",)
    return Step(
        "Conv", parameters=names, outputs=filters, kernel_shape=size, strides=stride, pads=pad, group=groups
    )


def max_pool_step(size: Value, stride: Value, pad: Value = 0, ceil: Value = 0) -> Step:
    """Return the maximum over windows of size x size pixels; `ceil` rounds the number of windows up."""
    step = Step("MaxPool", kernel_shape=size, strides=stride)
    given = {name: value for name, value in (("pads", pad), ("ceil_mode", ceil and 1)) if value}
    return step.replaced(given)


def dense_step(outputs: int) -> Step:
    """Return W'x + b."""
    return Step("Gemm", parameters=("W", "b"), outputs=outputs)


def flatten_step() -> Step:
    """Return the reshaping of (channel, row, column) to one feature axis; the channel varies slowest."""
    return Step("Flatten", axis=1)
