"""The rule of a job with a single worker: no exchange."""

import numpy as np

from multigpu.rules import StepResult, Synchronizer


class SingleWorker(Synchronizer):
    """Synchronizer for a single worker."""

    def __init__(self, network):
        self._network = network

    def step(self, *inputs, rate):
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        return StepResult(float(cost), float(error), stop)

    def total(self, values, stop):
        return np.array(values, dtype=np.float64), stop

    def close(self):
        """Do nothing; there are no resources to release."""


def connect(config, network, device, comm, recorder, step=0):
    return SingleWorker(network)
