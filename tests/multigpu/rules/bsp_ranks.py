"""Rank functions of tests/multigpu/rules/test_bsp.py and test_slowmo.py."""

import zlib
from functools import partial
from typing import NamedTuple

import numpy as np

from alexnet.training.updates import adadelta, adagrad, nesterov, sgd
from multigpu.device import open_device
from tests.multigpu.exchange import workers

UPDATES = {
    "momentum": workers.MOMENTUM, "nesterov": partial(nesterov, momentum=0.9), "sgd": sgd, "adagrad": adagrad,
    "adadelta": adadelta,
}
KEPT = (1, 60)                                   # steps whose state is stored


class Trained(NamedTuple):
    """States after the steps KEPT and the last; after each step, cost and checksums of weights and of all arrays."""

    states: dict
    weights: list
    digests: list
    costs: list


def train(comm, steps, changes, factor=1.0, parts=1, update="momentum", stop_at=None):
    """Train and exchange with the settings `changes`; the rate drops to a tenth half-way; return Trained.

    factor   multiplies the learning rate
    parts    number of batches that a rank combines into one
    stop_at  {rank: first step at which a stop is requested}
    """
    config, trained = workers.settings_of(changes), Trained({}, [], [], [])
    network = workers.configured(workers.make_network(update=UPDATES[update]), config, comm)
    network = workers.compiled_before(network, update)
    with open_device("cpu") as device, workers.join(config, network, device, comm, []) as exchange:
        for step in range(1, steps + 1):
            rate = np.float32(factor * (0.02 if 2 * step <= steps else 0.002))
            cost, error = exchange.step(*workers.synthetic_batch(step, comm.rank, comm.size, parts), rate=rate)
            stop = step >= (stop_at or {}).get(comm.rank, steps + 1)
            agreed = exchange.after_step(step, cost, error, rate, stop, step == steps)
            state = {name: np.array(array) for name, array in network.get_state().items()}
            if step in KEPT or agreed.stop:
                trained.states[step] = state
            names = [variable.name for variable in network.trainable_parameters]
            trained.weights.append([zlib.crc32(state[name]) for name in names])
            trained.digests.append([zlib.crc32(array) for array in state.values()])
            trained.costs.append(agreed.cost)
            if agreed.stop:
                break
    return trained


def train_combined(comm, steps, parts, factor=1.0, update="momentum"):
    """Train one worker on the combined batches of `parts` ranks."""
    return train(comm, steps, {}, factor, parts, update)


def connect_with_different_settings(comm):
    """Connect with a different momentum on each rank."""
    return train(comm, 1, {"momentum": 0.9 - 0.1 * comm.rank})
