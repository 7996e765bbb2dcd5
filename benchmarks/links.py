"""Formulas for the duration of an exchange: messages x latency + bytes / bandwidth, on the critical path.

Collective exchange of n bytes of float32 among N workers (d = log2 N, rounded up):

    ar                 2 d messages,       2 (N - 1) / N n bytes     halving and doubling; MPI may use another algorithm
    nccl32, nccl16     2 (N - 1) messages, 2 (N - 1) / N n bytes     ring
    asa32, asa16       2 (N - 1) messages, 2 (N - 1) / N n bytes     alltoall, then allgather
    copper, copper16   2 d messages,       d (n + piece) bytes       tree; both directions overlap except for one piece
    peer               2 d messages,       2 (N - 1) / N n bytes     slices of peers' memory; n for N = 2 on GPUs

Strategies whose names end in 16 send half of the bytes. Rules without a collective exchange have a cost per step
instead, where x = latency + n / bandwidth is the duration of a message with all parameters:

    easgd   2 x / tau, if the server keeps up. The server spends 2 x on each of N workers in turn, so tau steps of a
            worker take at least 2 N x
    gosgd   p x: a push, which no worker waits for

The model assumes that all links transfer at the same time without contention, and that communication does not overlap
with computation.

Source: Thakur et al. 2005, "Optimization of collective communication operations in MPICH" (latency, bandwidth, and the
costs of the patterns); Zhang et al. 2015 (easgd); Blot et al. 2016 (gosgd).
"""

import math
from typing import NamedTuple

import numpy as np

PIECE = 1 << 20                                  # bytes per piece in multigpu.exchange.copper
IMAGES = 5120
PEERS = ("ar", "asa32", "asa16", "copper", "copper16", "peer", "nccl32", "nccl16")
ALONE = ("easgd", "gosgd")


class Link(NamedTuple):
    """Latency of a message in seconds, bandwidth in bytes per second in one direction, and the source of both."""

    latency: float
    bandwidth: float
    source: str = ""


class Load(NamedTuple):
    """A training workload.

    parameters:         number of parameters of the network
    batch:              images per step of one worker
    seconds_per_image:  computation time of one worker
    """

    parameters: int
    batch: int
    seconds_per_image: float

    @property
    def bytes(self):
        return 4 * self.parameters

    @property
    def step(self):
        """Computation time of a worker's step in seconds."""
        return self.batch * self.seconds_per_image


NCCL = "NCCL (2020), src/graph/tuning.cc: latency of a ring's step, protocol Simple"
PRACTICE = "Microway, Performance Characteristics of Common Transports and Buses: typical bandwidth in practice"
FRAMES = "1,448 bytes of data in each 1,538 of a full Ethernet frame"
LINKS = {
    "PCIe 3.0 x16": Link(5.7e-6, 12.1e9, f"{NCCL}; {PRACTICE}"),
    "PCIe 4.0 x16": Link(5.7e-6, 25.0e9, f"{NCCL}; {PRACTICE}"),
    "NVLink 3 (A100)": Link(3.4e-6, 235e9, f"{NCCL}, and its bound of the A100's bandwidth"),
    "10 Gbit Ethernet": Link(30e-6, 10e9 / 8 * 1448 / 1538, f"latency assumed, TCP of the kernel; {FRAMES}"),
    "100 Gbit Ethernet": Link(30e-6, 100e9 / 8 * 1448 / 1538, f"latency assumed, TCP of the kernel; {FRAMES}"),
    "InfiniBand HDR": Link(9.6e-6, 24e9, f"{NCCL}; 48 GB/s of both directions, alpha-one AI infrastructure index"),
}
BETWEEN_HOSTS = ("10 Gbit Ethernet", "100 Gbit Ethernet", "InfiniBand HDR")

# published by Theano-MPI for K80 GPUs, in seconds per 5,120 images: workers -> (training, comm)
PUBLISHED = {
    "AlexNet": {1: (20.50, 0), 2: (10.35, 0.78), 4: (5.13, 0.54), 8: (2.63, 0.61)},
    "GoogLeNet": {1: (63.89, 0), 2: (31.40, 1.00), 4: (15.51, 0.71), 8: (7.69, 0.80)},
}
PARAMETERS = {"AlexNet": (60_965_224, 128), "GoogLeNet": (13_378_280, 32)}        # with Theano-MPI's batch size
LOADS = {name: Load(*PARAMETERS[name], PUBLISHED[name][1][0] / IMAGES) for name in PARAMETERS}


# ---- critical path


def path(strategy, workers, n, on_gpus=False):
    """Return the (messages, bytes) on the critical path of an exchange of n bytes of float32 among all workers."""
    if workers == 1:
        return 0, 0.0
    depth = math.ceil(math.log2(workers))
    wire = n / 2 if strategy.endswith("16") else n
    shared = 2 * (workers - 1) / workers * wire
    if strategy == "ar":
        return 2 * depth, shared
    if strategy in ("asa32", "asa16", "nccl32", "nccl16"):
        return 2 * (workers - 1), shared
    if strategy in ("copper", "copper16"):
        return 2 * depth, depth * (wire + min(wire, PIECE))
    if strategy == "peer":
        return 2 * depth, n if on_gpus and workers == 2 else shared
    raise ValueError(f"a strategy must be one of {', '.join(PEERS)}, got {strategy!r}")


def exchange_seconds(strategy, workers, n, link, host=0.0, on_gpus=False):
    """Return the seconds of an exchange of n bytes among all workers.

    Args:
        host: additional processor seconds per byte on the path, for sums, copies and rounding.
    """
    messages, moved = path(strategy, workers, n, on_gpus)
    return messages * link.latency + moved * (1 / link.bandwidth + host)


def seconds_per_step(how, workers, load, link, host=0.0, tau=10, p=0.01):
    """Return the exchange seconds per step of a worker, for a collective strategy, easgd or gosgd."""
    if how not in ALONE:
        return exchange_seconds(how, workers, load.bytes, link, host, on_gpus=not host)
    message = link.latency + load.bytes * (1 / link.bandwidth + host)
    if how == "gosgd":
        return p * message if workers > 1 else 0.0
    return max(tau * load.step + 2 * message, workers * 2 * message) / tau - load.step


class Prediction(NamedTuple):
    """Seconds of computation and of exchange per 5,120 images of all workers, and speed-up over one worker."""

    train: float
    comm: float
    speedup: float


def predict(how, workers, load, link, host=0.0):
    """Return the Prediction for a number of workers."""
    steps = IMAGES / (workers * load.batch)
    train, comm = steps * load.step, steps * seconds_per_step(how, workers, load, link, host)
    return Prediction(train, comm, IMAGES * load.seconds_per_image / (train + comm))


# ---- fit to measurements


class Measured(NamedTuple):
    """A measured exchange of `bytes` bytes with a strategy."""

    strategy: str
    workers: int
    bytes: int
    seconds: float


class Fit(NamedTuple):
    """A fitted Link, and measured / predicted seconds of each exchange used for the fit."""

    link: Link
    ratios: np.ndarray

    @property
    def deviation(self):
        """Typical error factor of the prediction, the root mean square of logarithms: 1.2 is 20 % either way."""
        return float(np.exp(np.sqrt(np.mean(np.log(self.ratios) ** 2))))


def turns(workers, cores):
    """Return the number of workers per core, at least 1, when all workers share one machine."""
    return max(1.0, workers / cores)


def fit(measured, cores=math.inf):
    """Fit latency and bandwidth to measured exchanges by least squares.

    The residuals are logarithms of measured / predicted seconds, so short and long exchanges count equally by relative
    error. Gauss-Newton steps, halved until they reduce the sum of squares, find the minimum.

    Args:
        measured: Measured exchanges with at least two different sizes.
        cores: number of cores of the machine that all workers share.

    Returns:
        The Fit.
    """
    terms = np.array([[turns(each.workers, cores) * term for term in path(each.strategy, each.workers, each.bytes)]
                      for each in measured])
    seconds = np.array([each.seconds for each in measured])

    def logarithms(costs):
        return np.log(seconds / (terms @ np.exp(costs)))

    shortest, longest = terms[:, 1].argmin(), terms[:, 1].argmax()
    costs = np.log([seconds[shortest] / terms[shortest, 0], seconds[longest] / terms[longest, 1]])
    for _ in range(100):
        off, weights = logarithms(costs), terms * np.exp(costs)
        step = np.linalg.lstsq(weights / weights.sum(axis=1, keepdims=True), off, rcond=None)[0]
        while np.sum(logarithms(costs + step) ** 2) > np.sum(off**2) and np.abs(step).max() > 1e-12:
            step = step / 2
        costs = costs + step
        if np.abs(step).max() < 1e-10:
            break
    latency, per_byte = np.exp(costs)
    return Fit(Link(float(latency), float(1 / per_byte)), np.exp(logarithms(costs)))


def published():
    """Return Theano-MPI's published comm times as Measured exchanges, in seconds per exchange."""
    return [
        Measured("asa32", workers, LOADS[name].bytes, comm * workers * LOADS[name].batch / IMAGES)
        for name, table in PUBLISHED.items() for workers, (_, comm) in table.items() if workers > 1
    ]
