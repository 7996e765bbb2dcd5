"""Schedules: from the progress of training to the learning rate.

A schedule is a pure function of the position and of the validation errors so far, so resuming needs no schedule
state. Epochs count from 0 and may be fractional: 1.5 is the middle of the second epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:                                # the loader imports this module, and does not need the settings
    from alexnet.config import Config


def step(epoch: float, steps: Sequence[int], factor: float = 0.1) -> float:
    """Return the factor at `epoch`: `factor` once per step passed. Source: Ding et al. 2014, lr_policy step."""
    return factor ** sum(int(epoch) >= at for at in steps)


def auto(
    errors: Sequence[float], threshold: float = 0.01, factor: float = 0.1, patience: int = 2, first: int = 5
) -> float:
    """Return the factor after validation errors `errors`, one per epoch, in [0, 1].

    The rate drops by `factor` at the end of an epoch if the top-1 error fell by less than `threshold` over the last
    `patience` epochs. It does not drop before epoch `first`, or within `patience` epochs of the previous drop.
    Source: theano_alexnet, adjust_learning_rate.
    """
    drops = 0
    last = 0
    for epoch in range(len(errors)):
        stalled = epoch >= patience and errors[epoch - patience] - errors[epoch] < threshold
        if epoch > first and epoch >= last + patience and stalled:
            drops += 1
            last = epoch
    return factor**drops


def poly(epoch: float, epochs: int, power: float = 0.5) -> float:
    """Return the factor (1 - epoch / epochs) ** power. Source: BVLC Caffe, bvlc_googlenet."""
    return max(0.0, 1 - epoch / epochs) ** power


def linear(epoch: float, epochs: int) -> float:
    """Return the factor 1 - epoch / epochs. Source: BVLC Caffe, policy poly with power 1."""
    return poly(epoch, epochs, 1.0)


def cosine(epoch: float, epochs: int) -> float:
    """Return the factor (1 + cos(pi * epoch / epochs)) / 2, without restarts.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5 with a minimum of 0 and T_i = epochs.
    """
    return (1 + math.cos(math.pi * min(epoch / epochs, 1.0))) / 2


def warm_up(epoch: float, epochs: int, start: float = 0.1) -> float:
    """Return the warm-up factor: linear from `start` to 1 over `epochs`. Source: Goyal et al. 2017, section 2.2."""
    return 1.0 if epoch >= epochs else start + (1 - start) * epoch / epochs


def learning_rate(config: Config, epoch: float, errors: Sequence[float], workers: int = 1) -> float:
    """Return the learning rate at `epoch` (fractional), given the validation errors of the completed epochs.

    With lr_scaling linear, the single-worker rate is multiplied by the number of workers. The warm-up then starts at
    the single-worker rate.
    Source: Goyal et al. 2017, sections 2.1 and 2.2.
    """
    scale = workers if config.lr_scaling == "linear" else 1
    rate = scale * config.learning_rate * warm_up(epoch, config.warmup_epochs, 1 / scale if scale > 1 else 0.1)
    if config.lr_policy == "step":
        return rate * step(epoch, config.lr_step, config.lr_factor)
    if config.lr_policy == "auto":
        return rate * auto(errors, config.lr_adapt_threshold, config.lr_factor)
    if config.lr_policy == "poly":
        return rate * poly(epoch, config.n_epochs, config.lr_power)
    if config.lr_policy == "linear":
        return rate * linear(epoch, config.n_epochs)
    if config.lr_policy == "cosine":
        return rate * cosine(epoch, config.n_epochs)
    return rate
