"""Rank functions of tests/multigpu/rules/test_recipes.py."""

import numpy as np

from alexnet.training.network import Network
from alexnet.training.objectives import CostSettings
from alexnet.training.updates import bind_update_rule
from alexnet.training.weight_average import WeightAverageSettings
from multigpu.device import open_device
from tests.multigpu.exchange.workers import BATCH, SmallNetwork, synthetic_batch
from tests.multigpu.rules.bsp_ranks import connect
from tests.tiny import settings


def train(comm, steps, changes, parts=1, rate=0.02):
    """Train and exchange with the settings `changes`; return the state after each step.

    parts  number of batches that a rank combines into one
    """
    config = settings("none", "none", **{"batch_size": BATCH, **changes})
    smoothing = config.section(CostSettings).label_smoothing
    network = Network(
        SmallNetwork(np.random.default_rng(0)), np.zeros((3, 6, 6), "float32"), bind_update_rule(config), "cpu",
        crop=False, label_smoothing=smoothing, ema_decay=config.section(WeightAverageSettings).ema_decay,
        micro_batches=config.micro_batches,
    )
    states = []
    with open_device("cpu") as device, connect(comm, device, network, changes) as exchange:
        for step in range(1, steps + 1):
            images, labels = synthetic_batch(step, comm.rank, comm.size, parts)
            *others, last = zip(
                np.split(images, config.micro_batches, axis=3), np.split(labels, config.micro_batches), strict=True
            )
            for position, (pixels, own) in enumerate(others):
                network.accumulate(np.ascontiguousarray(pixels), own, np.int64(position))
            cost, error = exchange.step(np.ascontiguousarray(last[0]), last[1], rate=np.float32(rate))
            exchange.after_step(step, cost, error, rate, False, True)
            states.append({name: np.array(array) for name, array in network.get_state().items()})
    return states
