"""What ranks do for the tests of rule BSP: train the smallest network on made batches, as the settings say."""

import zlib
from functools import partial
from typing import NamedTuple

import numpy as np

from alexnet.compile import Network
from alexnet.updates import adadelta, adagrad, momentum_sgd, nesterov, sgd
from multigpu.device import open_device
from multigpu.rules import bsp
from multigpu.rules.alone import Alone
from tests.multigpu.exchange_doubles import Listening, Smallest, made_batch
from tests.tiny import settings

UPDATES = {
    "momentum": partial(momentum_sgd, momentum=0.9), "nesterov": partial(nesterov, momentum=0.9), "sgd": sgd,
    "adagrad": adagrad, "adadelta": adadelta,
}  # fmt: skip
KEPT = (1, 60)                                   # steps whose state is kept


class Trained(NamedTuple):
    """The state after the steps KEPT and the last, a checksum of the weights, and of all, after each, and costs."""

    states: dict
    weights: list
    digests: list
    costs: list


def train(partners, steps, changes, factor=1.0, parts=1, update="momentum", stop_at=None):
    """Train and exchange by the settings `changes`; the rate drops to a tenth half-way; returns Trained.

    factor   of the rate
    parts    batches that a rank takes as one
    stop_at  {rank: the step from which on it is asked to stop}
    """
    network = Network(Smallest(np.random.default_rng(0)), np.zeros((3, 6, 6), "float32"), UPDATES[update], "cpu",
                      crop=False)  # fmt: skip
    trained = Trained({}, [], [], [])
    with open_device("cpu") as device, join(partners, device, network, changes) as exchange:
        for step in range(1, steps + 1):
            rate = np.float32(factor * (0.02 if 2 * step <= steps else 0.002))
            cost, error = exchange.step(*made_batch(step, partners.rank, partners.size, parts), rate=rate)
            stop = step >= (stop_at or {}).get(partners.rank, steps + 1)
            agreed = exchange.after_step(step, cost, error, rate, stop, step == steps)
            state = {name: np.array(array) for name, array in network.get_state().items()}
            if step in KEPT or agreed.stop:
                trained.states[step] = state
            names = [variable.name for variable in network.learning]
            trained.weights.append([zlib.crc32(state[name]) for name in names])
            trained.digests.append([zlib.crc32(array) for array in state.values()])
            trained.costs.append(agreed.cost)
            if agreed.stop:
                break
    return trained


def join(partners, device, network, changes):
    if partners.size == 1:
        return Alone(network)
    config = settings("none", "none", **changes)
    return bsp.connect(config, network, device, partners, Listening())


def together(partners, steps, parts, factor=1.0, update="momentum"):
    """What one worker learns from the batches of `parts` ranks as one."""
    return train(partners, steps, {}, factor, parts, update)


def differ(partners):
    """Begin with another momentum at each rank."""
    return train(partners, 1, {"momentum": 0.9 - 0.1 * partners.rank})
