"""What a model is, and the registry of models."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, NamedTuple

from alexnet.config import ConfigError, Registry
from alexnet.nn import Background, Chain, Layer, Rng, Sequential


class Outline(NamedTuple):
    """A model with one class and without values: what files of weights are compared with.

    shapes         name -> shape of each parameter, in order
    classifiers    names of the parameters whose last axis is the number of classes
    auxiliary      names of the parameters of auxiliary classifiers, which only training uses
    chain          the model as ONNX operators
    without_chain  why there is no chain, else empty: a layer has no form in ONNX
    """

    shapes: dict[str, tuple[int, ...]]
    classifiers: frozenset[str]
    auxiliary: frozenset[str]
    chain: Chain
    without_chain: str


class Model(Sequential):
    """A network: a table of layers, registered under its value of the setting `model`.

        @MODELS.register("small")
        class Small(Model):
            image_size = 224

            def table(self, rng, classes, dropout_rate):
                return Conv(rng, 3, 64, size=7, stride=2), Flatten(), Dense(rng, 760384, classes, relu=False)

    channels    channels of the images
    image_size  rows and columns of the images in pixels, after cropping

    Args:
        rng: NumPy Generator for the initial weights, or None; see alexnet.nn.weights_and_biases.
        classes: number of outputs of the last layer, and of auxiliary classifiers.
        dropout_rate: rate of the Dropout layers; 0 disables dropout.
    """

    channels: ClassVar[int] = 3
    image_size: ClassVar[int]

    def __init__(self, rng: Rng, classes: int = 1000, dropout_rate: float = 0.5) -> None:
        super().__init__(*self.table(rng, classes, dropout_rate))
        self._rng = rng

    def wait(self) -> None:
        """Return once the initial weights have been drawn, if a background thread draws them."""
        if isinstance(self._rng, Background):
            self._rng.wait()

    @abstractmethod
    def table(self, rng: Rng, classes: int, dropout_rate: float) -> Sequence[Layer]:
        """Return the layers; see the arguments of the class."""

    @classmethod
    @cache
    def outline(cls) -> Outline:
        """Return the Outline. The model is built once."""
        network = cls(None, classes=1)
        layers = network.weight_layers
        chain: Chain = ()
        reason = ""
        try:
            chain = network.named_steps()
        except NotImplementedError as error:
            reason = str(error)
        return Outline(
            shapes={parameter.name: parameter.shape for parameter in network.parameters},
            classifiers=frozenset(parameter.name for name in network.classifiers for parameter in layers[name]),
            auxiliary=frozenset(parameter.name for layer in network.auxiliaries for parameter in layer.parameters),
            chain=chain,
            without_chain=reason,
        )


MODELS: Registry[type[Model]] = Registry("model", "network", "alexnet.models")


def model_class(name: str) -> type[Model]:
    """Return the model of a name in MODELS, or of `module:Class`, which is then in MODELS too.

    Raises:
        ConfigError: there is none.
    """
    found = MODELS.find(name)
    if ":" in name:
        if not (isinstance(found, type) and issubclass(found, Model)):
            raise ConfigError(f"model must name a subclass of alexnet.models.Model, got {name}")
        MODELS[name] = found
    return found
