"""Rank functions of tests/multigpu/rules/test_recipes.py."""

import numpy as np

from alexnet.training.objectives import CostSettings
from alexnet.training.update_settings import WeightAverageSettings
from alexnet.training.updates import bind_update_rule
from multigpu.device import open_device
from tests.multigpu.exchange.workers import configured, join, make_network, settings_of, synthetic_batch


def train(comm, steps, changes, parts=1, rate=0.02):
    """Train and exchange with the settings `changes`; return the state after each step.

    parts  number of batches that a rank combines into one
    """
    config, states = settings_of(changes), []
    network = configured(make_network(
        update=bind_update_rule(config), label_smoothing=config.section(CostSettings).label_smoothing,
        ema_decay=config.section(WeightAverageSettings).ema_decay, micro_batches=config.micro_batches,
    ), config, comm)
    with open_device("cpu") as device, join(config, network, device, comm, []) as exchange:
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
