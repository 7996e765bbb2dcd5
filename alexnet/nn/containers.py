"""Layers in sequence, and layers made of several sequences."""

from collections.abc import Iterator, Sequence

import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from alexnet.nn.layer import Chain, Layer, LayerSummary, Shape, Step, Training
from alexnet.nn.layers import Dropout
from alexnet.nn.parameter import Parameter


class Sequential:
    """Layers applied in sequence.

    Layers with parameters are numbered from 1: conv1, conv2 … fc8. A layer without parameters has the number of the
    preceding layer with parameters, which is also the stream of a Dropout without one. Parameters are named conv1.W,
    conv1.b etc. A Named layer, such as Inception, brings its name, which prefixes the names of its layers.

    names  names of the layers; None numbers them
    """

    def __init__(self, *layers: Layer, names: Sequence[str] | None = None) -> None:
        self.layers = layers
        self.names = tuple(names or numbered(layers))
        for name, layer in zip(self.names, layers, strict=True):
            if not isinstance(layer, Named):
                for parameter in layer.parameters:
                    parameter.rename(name)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of all layers, in order."""
        return tuple(parameter for layer in self.layers for parameter in layer.parameters)

    @property
    def weight_layers(self) -> dict[str, tuple[Parameter, ...]]:
        """Name -> parameters of each layer with parameters: conv1, conv2 … fc8."""
        found: dict[str, tuple[Parameter, ...]] = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            found |= layer.weight_layers if isinstance(layer, Named) else {name: layer.parameters}
        return {name: parameters for name, parameters in found.items() if parameters}

    @property
    def auxiliaries(self) -> tuple["Auxiliary", ...]:
        """The auxiliary classifiers."""
        return tuple(layer for layer in self.layers if isinstance(layer, Auxiliary))

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Names of the layers that output classes: the last of each auxiliary classifier and of the network."""
        towers = (layer.tower for layer in self.auxiliaries)
        return tuple(list(part.weight_layers)[-1] for part in (*towers, self))

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        """Return the activations after the last layer; see Layer."""
        for name, layer in zip(self.names, self.layers, strict=True):
            x = self.output(name, layer, x, training)
        return x

    def output(self, name: str, layer: Layer, x: TensorVariable, training: Training | None) -> TensorVariable:
        """Return the activations after a layer, and add them to the outputs of the training step."""
        y = layer(x, training)
        if training is not None and layer.parameters:
            training.outputs[name] = y
        return y

    def training_outputs(
        self, x: TensorVariable, training: Training
    ) -> tuple[TensorVariable, list[tuple[float, TensorVariable]]]:
        """Return the outputs used in training: those of the network, and (weight, outputs) per auxiliary classifier."""
        auxiliary = []
        for name, layer in zip(self.names, self.layers, strict=True):
            if isinstance(layer, Auxiliary):
                auxiliary.append((layer.weight, layer.tower(x, training)))
            else:
                x = self.output(name, layer, x, training)
        return x, auxiliary

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        """Yield the rows of all layers for an input of `shape` (channel, row, column)."""
        for layer, name in zip(self.layers, self.names, strict=True):
            rows = list(layer.describe(shape))
            yield from rows if isinstance(layer, Named) else (named_row(row, layer, name) for row in rows)
            if not isinstance(layer, Auxiliary):
                shape = rows[-1].shape

    def named_steps(self) -> Chain:
        """Return the network as ONNX operators: (name of the layer, step).

        Raises:
            NotImplementedError: a layer has no form in ONNX.
        """
        chain: list[tuple[str, Step]] = []
        for name, layer in zip(self.names, self.layers, strict=True):
            chain += layer.named_steps() if isinstance(layer, Named) else ((name, step) for step in layer.steps())
        return chain


def numbered(layers: Sequence[Layer]) -> Iterator[str]:
    """Yield the name of each layer: that of a Named layer, else its kind and the number of weight layers so far."""
    number = 0
    for layer in layers:
        number += layer.depth
        if isinstance(layer, Dropout) and layer.stream is None:
            layer.stream = number
        yield layer.name if isinstance(layer, Named) else f"{layer.kind}{number}"


def named_row(row: LayerSummary, layer: Layer, name: str) -> LayerSummary:
    """Return a summary row with its name, e.g. pool1 in conv1; the layer's name unless that is kind plus number."""
    return row._replace(name=row.name + name.removeprefix(layer.kind) if name.startswith(layer.kind) else name)


class Named(Layer):
    """A layer made of Sequentials. It has a name, with which the names of its layers start.

    parts  Sequentials, in the order of their parameters
    """

    depth = 0

    def __init__(self, name: str, *parts: Sequential) -> None:
        self.name = name
        self.parts = parts
        self.parameters = tuple(parameter for part in parts for parameter in part.parameters)

    @property
    def weight_layers(self) -> dict[str, tuple[Parameter, ...]]:
        """Name -> parameters of each layer with parameters."""
        return {name: parameters for part in self.parts for name, parameters in part.weight_layers.items()}

    def named_steps(self) -> Chain:
        """Return the layer as ONNX operators; see Sequential."""
        return [(self.name, step) for step in self.steps()]


class Concatenation(Named):
    """Branches on the same input, concatenated along the channel axis.

    stem  layers between the input and the branches, or None
    """

    def __init__(self, name: str, *branches: Sequential, stem: Sequential | None = None) -> None:
        super().__init__(name, *filter(None, (stem,)), *branches)
        self.stem = stem or Sequential()
        self.branches = branches

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        x = self.stem(x, training)
        return pt.join(0, *(branch(x, training) for branch in self.branches))

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        for row in self.stem.describe(shape):
            yield row
            shape = row.shape
        rows = [list(branch.describe(shape)) for branch in self.branches]
        yield from (row for branch in rows for row in branch)
        channels = sum(branch[-1].shape[0] for branch in rows)
        yield LayerSummary(self.name, (channels, *rows[0][-1].shape[1:]), 0, 0)

    def named_steps(self) -> Chain:
        concat = Step("Concat", branches=tuple(branch.named_steps() for branch in self.branches), axis=1)
        return [*self.stem.named_steps(), (self.name, concat)]


class Auxiliary(Named):
    """Auxiliary classifier on intermediate activations x. It is used only in training; calling it returns x unchanged.

    tower   maps x to the logits
    weight  weight of its cost in the training cost
    """

    def __init__(self, name: str, tower: Sequential, weight: float) -> None:
        super().__init__(name, tower)
        self.tower = tower
        self.weight = weight

    def __call__(self, x: TensorVariable, training: Training | None = None) -> TensorVariable:
        return x

    def describe(self, shape: Shape) -> Iterator[LayerSummary]:
        yield from self.tower.describe(shape)

    def steps(self) -> Iterator[Step]:
        return iter(())
