"""The parameters of a layer and their initial values, which are drawn at once or by a background thread."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytensor
from pytensor.compile.sharedvalue import SharedVariable


class Parameter:
    """A shared variable with its multipliers of learning rate and weight decay.

    value       float array; not copied if it is C-contiguous and of the given dtype
    lr_mult     multiplier of the learning rate (2 for biases; Krizhevsky et al. 2012, cuda-convnet)
    decay_mult  multiplier of the weight decay (0 for biases)
    running     True for a running statistic: its layer updates it in training, without a gradient
    trainable   False if the parameter is frozen

    The dtype does not depend on PyTensor's floatX, which belongs to the program that imports this package.
    """

    def __init__(
        self, value: npt.ArrayLike, name: str, lr_mult: float = 1.0, decay_mult: float = 1.0, dtype: str = "float32",
        running: bool = False,
    ) -> None:
        array = np.ascontiguousarray(value, dtype=dtype)
        self.variable: SharedVariable = pytensor.shared(array, name=name, shape=array.shape, borrow=True)
        self.lr_mult = lr_mult
        self.decay_mult = decay_mult
        self.running = running
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
    def real(self) -> type[np.floating]:
        """NumPy type of the value. Unlike a Python float, a number of this type never widens a formula to float64."""
        return np.dtype(self.variable.type.dtype).type

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Background:
    """Draws initial weights in a background thread. One thread draws in order, so the values equal those of rng itself.

    submit() returns before its array is filled; wait() returns once all arrays are filled.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.thread = ThreadPoolExecutor(1)
        self.pending: list[Future[None]] = []

    def submit(self, out: npt.NDArray[np.float32], std: float) -> None:
        """Fill `out` as draw_normal does, later."""
        self.pending.append(self.thread.submit(draw_normal, self.rng, out, std))

    def wait(self) -> None:
        """Return once all arrays are filled; raises what drawing raised."""
        while self.pending:
            self.pending.pop().result()
        self.thread.shutdown()


Rng: TypeAlias = np.random.Generator | Background | None
Std: TypeAlias = float | Callable[[int], float]


def draw_normal(rng: np.random.Generator, out: npt.NDArray[np.float32], std: float) -> None:
    """Fill `out` with samples of N(0, std**2). NumPy releases the GIL while it draws."""
    rng.standard_normal(out=out, dtype=np.float32)
    out *= np.float32(std)


def xavier(terms: int) -> float:
    """Return the standard deviation of weights for which a sum of `terms` inputs has the variance of one input.

    Source: Glorot and Bengio 2010, section 4.2.1, in the form of BVLC Caffe's filler "xavier". Caffe's filler samples a
    uniform distribution.
    """
    return terms**-0.5


def he(terms: int) -> float:
    """Return the standard deviation of weights that preserves the variance of activations through ReLU.

    Source: He et al. 2015, "Delving Deep into Rectifiers", equation 10.
    """
    return (2 / terms) ** 0.5


def draw_weights(rng: Rng, shape: tuple[int, ...], std: Std) -> Parameter:
    """Return the parameter W ~ N(0, std**2) of `shape`, whose last axis is that of the outputs.

    Args:
        rng: NumPy Generator, a Background, or None. With None, W is 0 and the caller loads the values later.
        std: a number, or a function such as xavier that maps the number of terms per output to a number.
    """
    weights = np.zeros(shape, np.float32)
    spread = std(math.prod(shape[:-1])) if callable(std) else std
    if isinstance(rng, Background):
        rng.submit(weights, spread)
    elif rng is not None:
        draw_normal(rng, weights, spread)
    return Parameter(weights, "W")


def weights_and_biases(
    rng: Rng, shape: tuple[int, ...], outputs: int, std: Std, bias: float
) -> tuple[Parameter, Parameter]:
    """Return the two parameters of a layer: W of draw_weights(), and b = bias for each output."""
    return draw_weights(rng, shape, std), Parameter(np.full(outputs, bias), "b", lr_mult=2.0, decay_mult=0.0)
