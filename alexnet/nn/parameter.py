"""A parameter of a layer: a shared variable with its multipliers of learning rate and weight decay."""

import math

import numpy as np
import numpy.typing as npt
import pytensor
from pytensor.compile.sharedvalue import SharedVariable


class Parameter:
    """A shared variable with its multipliers of learning rate and weight decay.

    value       float array; not copied if it is C-contiguous and its dtype is floatX
    lr_mult     multiplier of the learning rate (2 for biases; Krizhevsky et al. 2012, cuda-convnet)
    decay_mult  multiplier of the weight decay (0 for biases)
    trainable   False if the parameter is frozen
    """

    def __init__(self, value: npt.ArrayLike, name: str, lr_mult: float = 1.0, decay_mult: float = 1.0) -> None:
        array = np.ascontiguousarray(value, dtype=pytensor.config.floatX)
        self.variable: SharedVariable = pytensor.shared(array, name=name, shape=array.shape, borrow=True)
        self.lr_mult = lr_mult
        self.decay_mult = decay_mult
        self.trainable = True

    @property
    def name(self) -> str:
        """Name of the variable: W, or conv1.W in a network."""
        return self.variable.name

    def rename(self, layer: str) -> None:
        """Put the name of the layer before that of the parameter: W becomes conv1.W."""
        self.variable.name = f"{layer}.{self.name.rpartition('.')[2]}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.variable.type.shape

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)
