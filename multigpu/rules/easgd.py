"""Elastic averaging SGD: every tau steps, a worker and the center variable are pulled towards each other.

Between exchanges the workers explore independently.

    v_i <- mu v_i - lr_p (g_i + eta w_i),  w_i <- w_i + v_i          each step, on worker i only
    c <- c + alpha (w_i - c),  w_i <- w_i - alpha (w_i - c)          every tau steps of worker i, from the values before

The velocities remain local to the workers. Each exchange conserves w_i + c. With alpha = 0 the workers are independent;
alpha = 1 swaps worker and center variable. Rank 0 is the server and holds the center variable, which is validated and
saved. The workers are the ranks from 1 on; see multigpu.rules.parameter_server.server.

Source: Zhang et al. 2015, equations 5 and 6 and algorithm 1 (asynchronous EASGD, with momentum as in Ma et al. 2016).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from alexnet.config import Config, Section
from alexnet.config.fields import Count, Fraction
from alexnet.training.base import Recorder, Synchronizer
from multigpu.exchange.flat_buffer import FlatBuffer, blocks
from multigpu.rules.base import RULES, Rule
from multigpu.rules.parameter_server import server
from multigpu.rules.parameter_server.client import Client
from multigpu.rules.parameter_server.protocol import SERVER, CenterPolicy, Fetch, Push, TransferPlan

if TYPE_CHECKING:
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.mpi.channel import Channel  # importing it initialises MPI


class EasgdSettings(Section):
    """How often, and how far, a worker and the center variable move towards each other."""

    easgd_tau: Count
    easgd_alpha: Fraction


@RULES.register("easgd")
class EasgdRule(Rule):
    """Each worker exchanges with a server every easgd_tau steps."""

    settings = (EasgdSettings,)
    has_server = True

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Synchronizer:
        settings = config.section(EasgdSettings)
        return server.connect(
            self, config, network, device, comm, recorder, step,
            policy=lambda center, channel: ElasticPolicy(center, settings.easgd_alpha),
            client=partial(ElasticClient, tau=settings.easgd_tau),
        )


class ElasticClient(Client):
    """A client that exchanges every tau steps; see Client for the other arguments."""

    def __init__(
        self, network: Network, variables: list[SharedVariable], flat: FlatBuffer, channel: Channel,
        recorder: Recorder, tau: int,
    ):
        super().__init__(network, variables, flat, channel, recorder)
        self._tau = tau

    def contact(self, step: int) -> bool:
        if step % self._tau:
            return False
        grant = self.ask(Push, step)
        with self.exchanging():
            self._channel.exchange_with_server(self._flat.array(), SERVER)
            self._flat.unpack(self._variables)
        return grant.stop


class ElasticPolicy(CenterPolicy):
    """Center policy of EASGD: the center variable and a worker are pulled towards each other."""

    def __init__(self, center: FlatBuffer, alpha: float):
        super().__init__(center)
        self._alpha = alpha

    def answer(self, push: Push | Fetch) -> TransferPlan:
        center = self.center.array()
        return TransferPlan(lambda worker, part: elastic_step(worker, center[part], self._alpha))


def elastic_step(worker: np.ndarray, center: np.ndarray, alpha: float) -> None:
    """Move the weights of a worker and the center variable towards each other, in place.

        c <- c + alpha (w - c),  w <- w - alpha (w - c)              from the values before

    worker, center  one-dimensional float arrays of the same length and dtype, without shared memory
    """
    alpha = worker.dtype.type(alpha)
    for w, c, pull in blocks(worker, center):
        np.subtract(w, c, out=pull)
        pull *= alpha
        w -= pull
        c += pull
