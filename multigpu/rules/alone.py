"""The rule of a single worker: there is nobody to exchange with."""

import numpy as np

from multigpu.rules import Agreed, Exchange


class Alone(Exchange):
    """What multigpu.rules promises, for one worker."""

    def __init__(self, network):
        self._network = network

    def step(self, *inputs, rate):
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        return Agreed(float(cost), float(error), stop)

    def total(self, values, stop):
        return np.array(values, dtype=np.float64), stop

    def close(self):
        """There is nothing to let go of."""


def connect(config, network, device, partners, recorder, step=0):
    return Alone(network)
