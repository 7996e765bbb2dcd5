"""Statistics of a training step by layer, which show why a network does not learn.

    gradient    norm of the gradient of the layer's parameters
    scale       root mean square of the layer's output
    dead        share of the channels (of a dense layer: units) whose output was 0 in the last REMEMBERED measurements
    update      norm of the change of the parameters in the step, divided by the norm of the parameters
    confidence  mean of the largest probability of an image, of the whole network

The first three, and the confidence, come from an additional pass over a part of the batch's images. It changes nothing.
The update is measured on a sample of each parameter.

Source: Glorot and Bengio 2010, section 4, for the scales; Lu et al. 2020, "Dying ReLU and initialization".
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.compile import Function
from pytensor.tensor.variable import TensorVariable

from alexnet.nn import Parameter
from alexnet.training.base import Recorder
from alexnet.training.diagnosis import STATISTICS
from alexnet.training.factors import factors_of
from alexnet.training.loop import Observer
from alexnet.training.network import Network

FIRST = 50                                       # iteration: a shorter run is a trial, and compiles nothing
SHARE = 0.005                                    # largest part of the training time that measurements take
PART = 8                                         # of the images of a micro-batch, one in PART is measured
MOST = 32                                        # images
REMEMBERED = 5                                   # measurements
SAMPLE = 65_536                                  # values of a parameter


class Probe:
    """Measures gradients and outputs on a few images; the function is compiled when the object is created."""

    def __init__(self, network: Network):
        graph = network.backward_graph(network.step)
        squares: dict[str, list[TensorVariable]] = {}
        owners = {id(p): name for name, parameters in network.model.weight_layers.items() for p in parameters}
        for parameter, gradient in zip(network.trainable_parameters, graph.gradients, strict=True):
            squares.setdefault(owners[id(parameter)], []).append(sum_of_squares(gradient))
        self.layers = [name for name in squares if name in graph.layers]
        outputs = [graph.layers[name] for name in self.layers]
        self._function: Function = network.compile(graph.inputs, [
            pt.stack([pt.sqrt(sum(squares[name][1:], squares[name][0])) for name in self.layers]),
            pt.stack([pt.sqrt(pt.sqr(y).mean()) for y in outputs]),
            pt.max(pt.special.softmax(graph.logits, axis=0), axis=0).mean(),
            *(pt.max(y, axis=tuple(range(1, y.ndim))) for y in outputs),
        ])
        self._active: deque[list[np.ndarray]] = deque(maxlen=REMEMBERED)

    def __call__(self, *inputs: np.ndarray) -> dict[str, float]:
        """Return the statistics of these images by name: conv1.gradient, conv1.scale, conv1.dead ... and confidence.

        Args:
            inputs: images, with their augmentation unless the loader has applied it, and labels.
        """
        gradients, scales, confidence, *largest = (np.asarray(output) for output in self._function(*inputs))
        self._active.append([values != 0 for values in largest])
        statistics = {}
        for layer, *active in zip(self.layers, *self._active, strict=True):
            statistics[f"{layer}.dead"] = 1 - float(np.any(active, axis=0).mean())
        for layer, gradient, scale in zip(self.layers, gradients, scales, strict=True):
            statistics[f"{layer}.gradient"] = float(gradient)
            statistics[f"{layer}.scale"] = float(scale)
        return {**statistics, "confidence": float(confidence)}


class StatisticsObserver(Observer):
    """Records the statistics of a step every print_freq iterations, or less often if they would take too much time.

    Args:
        network: trains in this process.
        recorder: that of rank 0.
        every: iterations; only multiples of it are measured.
    """

    def __init__(self, network: Network, recorder: Recorder, every: int):
        self._network = network
        self._recorder = recorder
        self._every = every
        self._due = -math.inf                    # time of the next measurement, in seconds of the recorder's clock
        self._taken = 0.0                        # seconds of the measurement before the step
        self._probe: Probe | None = None
        self._statistics: dict[str, float] = {}
        self._before: dict[str, list[np.ndarray]] = {}

    def step_begins(self, iteration: int, inputs: Sequence[np.ndarray]) -> None:
        """See Observer."""
        if iteration < FIRST or iteration % self._every or self._recorder.clock() < self._due:
            return
        n = min(max(len(inputs[-1]) // PART, 1), MOST)
        few = [first_images(array, n) for array in inputs]
        if self._probe is None:
            with self._recorder.paused():
                self._probe = Probe(self._network)
                self._probe(*few)                # the jax backend compiles with the first call
        began = self._recorder.clock()
        with self._recorder.time("calc"):
            self._statistics = self._probe(*few)
            self._before = samples_of(self._network)
        self._taken = self._recorder.clock() - began

    def step_ended(self, iteration: int) -> None:
        """See Observer."""
        if not self._before:
            return
        began = self._recorder.clock()
        with self._recorder.time("calc"):
            after = samples_of(self._network)
            updates = {f"{name}.update": relative_change(self._before[name], after[name]) for name in after}
        self._before = {}
        now = self._recorder.clock()
        self._due = now + (self._taken + now - began) / SHARE
        self._recorder.record(STATISTICS, iteration=iteration, **self._statistics, **updates)


def sum_of_squares(gradient: TensorVariable) -> TensorVariable:
    """Return the sum of the squares of a gradient; that of a dense layer is not computed.

    The square of the Frobenius norm of X G' is the sum of the products of X'X and G'G, which are (batch, batch).
    """
    factors = factors_of(gradient)
    if factors is None:
        return pt.sqr(gradient).sum()
    return (pt.dot(factors.x.T, factors.x) * pt.dot(factors.g.T, factors.g)).sum()


def first_images(array: Any, n: int) -> Any:
    """Return the first n images, crops or labels; the batch is the last axis."""
    first = array[..., :n]
    return np.ascontiguousarray(first) if isinstance(first, np.ndarray) else first


def samples_of(network: Network) -> dict[str, list[np.ndarray]]:
    """Return name of the layer -> copies of a part of its trainable parameters, the same at each call."""
    trainable = {id(parameter) for parameter in network.trainable_parameters}
    samples = {
        name: [sample(parameter) for parameter in parameters if id(parameter) in trainable]
        for name, parameters in network.model.weight_layers.items()
    }
    return {name: own for name, own in samples.items() if own}


def sample(parameter: Parameter) -> np.ndarray:
    """Return a copy of about SAMPLE values: evenly spaced rows, which are short distances in memory."""
    values = parameter.variable.get_value(borrow=True)
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(-1, 1)
    return np.array(rows[:: max(values.size // SAMPLE, 1)])


def relative_change(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """Return the norm of the change, divided by the norm before it; 0 for zeros."""
    change = math.sqrt(sum(float(np.sum((new - old) ** 2)) for old, new in zip(before, after, strict=True)))
    norm = math.sqrt(sum(float(np.sum(old**2)) for old in before))
    return change / norm if norm else 0.0
