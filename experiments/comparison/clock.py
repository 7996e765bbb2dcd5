"""Seconds and bytes of AlexNet: a step, an exchange, and the part of an exchange that delays the step.

An exchange of all gradients moves 2 (N - 1) / N arrays of 243.9 MB per worker, in float16 half of that. Factors of a
dense layer move (N - 1) x batch x (inputs + outputs) numbers, if that is less (alexnet.training.factors). With overlap,
a first group of layers with a share q of the exchange C is ready when a share r of the computation T remains, and

    visible = max(q C - r T, 0) + (1 - q) C                                       (alexnet.training.gradient_groups)

Computation is counted in multiplications. Constants are measured on one Zen 4 core (benchmarks/RESULTS.md, "Overlap").
Latency is neglected, and so is the congestion of a switch: each worker has its own link in both directions.
"""

from typing import NamedTuple

from experiments.asgd import Costs
from experiments.asgd.peers import ring_arrays

PARAMETERS = 60_965_224                          # of AlexNet
ARRAY = 4 * PARAMETERS                           # bytes
BATCH = 128                                      # images of a worker in a step
STEP = 2.57                                      # seconds of a step without an exchange, one core
EFFICIENCY = 0.94                                # 243.9 MB take 2.07 s at 1 Gbit/s, with packing and TCP
SEPARATE_UPDATE = 0.007                          # of a step: gradients are stored and then applied
PRODUCT = 0.043                                  # of a step: the product of one other worker's factors
APPLY = 0.016                                    # seconds of the server's update: 12 bytes per value at 46.4 GB/s
JITTER = 0.02                                    # a step's duration varies by up to this fraction, uniformly


class AlexNetLayer(NamedTuple):
    """A layer of AlexNet.

    values:           weights and biases
    multiplications:  of the forward pass, for one image
    factors:          inputs + outputs of a dense layer, else 0
    """

    name: str
    values: int
    multiplications: int
    factors: int = 0


# in the order of the backward pass
LAYERS = (
    AlexNetLayer("fc8", 4_097_000, 4_096_000, 4096 + 1000),
    AlexNetLayer("fc7", 16_781_312, 16_777_216, 4096 + 4096),
    AlexNetLayer("fc6", 37_752_832, 37_748_736, 9216 + 4096),
    AlexNetLayer("conv5", 442_624, 74_760_192),
    AlexNetLayer("conv4", 663_936, 112_140_288),
    AlexNetLayer("conv3", 885_120, 149_520_384),
    AlexNetLayer("conv2", 307_456, 223_948_800),
    AlexNetLayer("conv1", 34_944, 105_415_200),
)


class Link(NamedTuple):
    """How workers are connected.

    array:    seconds for one array of AlexNet's size from one worker to another
    shared:   seconds per worker of an average of such arrays in memory that all workers share; None: each has a link
    most:     largest number of workers
    """

    name: str
    array: float
    shared: float | None = None
    most: int = 1024

    def average(self, workers, share=1.0):
        """Return the seconds in which N workers average arrays that are a share of AlexNet's."""
        if workers == 1:
            return 0.0
        return share * (ring_arrays(workers) * self.array if self.shared is None else workers * self.shared)

    def costs(self):
        """Return the Costs of an exchange with a server, or with another worker."""
        return Costs(STEP, 0.0, self.array, APPLY)


def ethernet(name, bits):
    return Link(name, 8 * ARRAY / bits / EFFICIENCY)


# benchmarks.mpi.server: 8.5 pushes with the answer per second; benchmarks.exchange: 61, 92 and 122 ms for 2, 3, 4
# workers on two cores
SHARED_MEMORY = Link("shared memory", 1 / 8.5 / 2, 0.0305, 8)
LINKS = (SHARED_MEMORY, ethernet("1 Gbit/s", 1e9), ethernet("100 Mbit/s", 1e8))


class Strategy(NamedTuple):
    """How rule bsp moves gradients.

    settings: those of train.py that select it
    """

    name: str
    settings: str
    factors: bool = False
    half: bool = False
    overlap: bool = False


STRATEGIES = (
    Strategy("plain", "exchange=asa32 exchange_what=gradients overlap=false"),
    Strategy("overlap", "exchange=asa32 exchange_what=gradients", overlap=True),
    Strategy("asa16", "exchange=asa16 exchange_what=gradients overlap=false", half=True),
    Strategy("asa16, overlap", "exchange=asa16 exchange_what=gradients", half=True, overlap=True),
    Strategy("factors, overlap", "exchange=asa32 exchange_what=factors", factors=True, overlap=True),
    Strategy("asa16, factors, overlap", "exchange=asa16 exchange_what=factors", factors=True, half=True, overlap=True),
)


def uses_factors(layer, workers):
    """Return whether the factors of a layer are smaller than its gradient."""
    return bool(layer.factors) and (workers - 1) * BATCH * layer.factors < ring_arrays(workers) * layer.values


def layer_bytes(strategy, workers):
    """Return the bytes that a worker sends for each of LAYERS in one exchange."""
    per_value = (2 if strategy.half else 4) * ring_arrays(workers)
    return [
        4 * (workers - 1) * BATCH * layer.factors if strategy.factors and uses_factors(layer, workers)
        else per_value * layer.values for layer in LAYERS
    ]


def bytes_sent(strategy, workers):
    """Return the bytes that a worker sends in one exchange of rule bsp."""
    return sum(layer_bytes(strategy, workers))


def remaining():
    """Return for each of LAYERS the share of the computation that remains when its gradient is ready."""
    forward = sum(layer.multiplications for layer in LAYERS)
    total = 3 * forward - LAYERS[-1].multiplications       # the images need no gradient
    done, shares = forward, []
    for layer in LAYERS:
        shares.append(1 - (done + layer.multiplications) / total)
        done += 2 * layer.multiplications
    return shares


def visible(strategy, workers, link):
    """Return the seconds by which one exchange of rule bsp delays a step."""
    if workers == 1:
        return 0.0
    sizes = layer_bytes(strategy, workers)
    total = sum(sizes)
    seconds = link.average(workers, total / (ring_arrays(workers) * ARRAY))
    if not strategy.overlap:
        return seconds

    def delay(layers, seconds, step):
        q, r = sum(sizes[:layers]) / total, remaining()[layers - 1]
        return max(q * seconds - r * step, 0.0) + (1 - q) * seconds

    # the group is chosen as if the exchange of all gradients took as long as the step
    plain = sum(layer_bytes(strategy._replace(factors=False), workers))
    chosen = min(range(1, len(LAYERS) + 1), key=lambda layers: delay(layers, total / plain, 1.0))
    return delay(chosen, seconds, STEP)


def computation(strategy, workers):
    """Return the seconds of a step of rule bsp without its exchange."""
    dense = [layer for layer in LAYERS if layer.factors]
    share = sum(layer.values for layer in dense if strategy.factors and uses_factors(layer, workers))
    products = PRODUCT * (workers - 1) * share / sum(layer.values for layer in dense)
    return STEP * (slowest(workers) + (SEPARATE_UPDATE if workers > 1 else 0.0) + products)


def slowest(workers):
    """Return the expected duration of the slowest of N steps, relative to the mean: the maximum of N uniform values."""
    return 1 + JITTER * (workers - 1) / (workers + 1)


def bsp_step(strategy, workers, link):
    """Return the seconds of a step of rule bsp."""
    return computation(strategy, workers) + visible(strategy, workers, link)


def round_seconds(steps, workers, link):
    """Return the seconds of `steps` local steps and an average of the weights, as in rule slowmo."""
    return steps * STEP * slowest(workers) + link.average(workers)


def saturation(interval, link):
    """Return the number of clients from which on a server is always busy, with exchanges every `interval` steps."""
    turn = link.costs().turn()
    return (interval * STEP + turn) / turn
