"""What a layer is: the contract of all layers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple, TypeAlias

from pytensor.tensor.variable import TensorVariable

from alexnet.nn.graph import Step
from alexnet.nn.parameter import Parameter

Shape: TypeAlias = tuple[int, ...]      # of activations, without the batch axis: (channels, rows, columns), (features,)


class Noise(NamedTuple):
    """Random state of the stochastic layers in one training step. Both fields are integer scalars, symbolic or not."""

    seed: object            # differs between runs and workers
    step: object            # completed iterations


class LayerSummary(NamedTuple):
    """One row of `python -m alexnet summary`."""

    name: str
    shape: Shape            # of the output
    parameters: int
    macs: int               # multiply-adds per image in the forward pass


class Layer(ABC):
    """A function of activations, with its parameters.

    kind        start of the layer's name; Sequential appends a number: conv1
    parameters  Parameters with the names W, b …; Sequential puts the layer's name before them: conv1.W
    depth       number of layers that it counts as in the numbering
    """

    kind: ClassVar[str]
    parameters: tuple[Parameter, ...] = ()

    @property
    def depth(self) -> int:
        """1 if the layer has parameters, else 0."""
        return int(bool(self.parameters))

    @abstractmethod
    def __call__(self, x: TensorVariable, noise: Noise | None = None) -> TensorVariable:
        """Return the activations after the layer.

        Args:
            x: float32 (channel, row, column, batch) or (feature, batch).
            noise: random state in training; None in validation.
        """

    @abstractmethod
    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        """Yield the rows of the layer in the summary for an input of `shape`; the last one has the output's shape.

        The name of a row is a kind, such as conv or pool. Sequential appends the layer's number.
        """

    def steps(self) -> Iterator[Step]:
        """Yield the layer as ONNX operators. None: the layer does nothing outside training.

        Raises:
            NotImplementedError: the layer has no form in ONNX.
        """
        raise NotImplementedError(f"a layer {type(self).__name__} has no form in ONNX or Caffe")

    def row(self, shape: Shape, macs: int = 0) -> LayerSummary:
        """Return the LayerSummary of a layer with one row, from the shape of its output."""
        return LayerSummary(self.kind, shape, sum(parameter.size for parameter in self.parameters), macs)
