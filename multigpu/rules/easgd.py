"""Elastic averaging: every tau steps a worker and a centre pull at each other; between them workers explore apart.

    v_i <- mu v_i - lr_p (g_i + eta w_i),  w_i <- w_i + v_i          each step, on worker i alone
    c <- c + alpha (w_i - c),  w_i <- w_i - alpha (w_i - c)          every tau steps of worker i, from the values before

The workers' velocities stay their own.  Each exchange conserves w_i + c.  alpha = 0 leaves the workers to themselves,
alpha = 1 swaps worker and centre.  Rank 0 is the server that holds the centre, which is what is validated and saved;
the workers are the ranks from 1 on: multigpu.rules.server.

Source: Zhang et al. 2015, equations 5 and 6 and algorithm 1 (asynchronous EASGD, with momentum as in Ma et al. 2016).
"""

import numpy as np

from multigpu.exchange.flat import blocks
from multigpu.rules import server
from multigpu.rules.client import Client
from multigpu.rules.turns import SERVER, Answer, Keeper, Push


def connect(config, network, device, partners, recorder, step=0):
    """The Server at rank 0, an ElasticClient at the others, as multigpu.rules says; all of them call it."""
    return server.connect(
        config, network, device, partners, recorder, step,
        keeper=lambda centre, post: Elastic(centre, config.alpha),
        client=lambda *parts: ElasticClient(*parts, config.tau),
    )  # fmt: skip


class ElasticClient(Client):
    """A worker, which exchanges every tau steps; the rest is Client's."""

    def __init__(self, network, variables, flat, post, recorder, tau):
        super().__init__(network, variables, flat, post, recorder)
        self._tau = tau

    def contact(self, step):
        if step % self._tau:
            return False
        turn = self.ask(Push, step)
        with self.exchanging():
            self._post.hand_over(self._flat.array(), SERVER)
            self._flat.unpack(self._variables)
        return turn.stop


class Elastic(Keeper):
    """The centre that a worker and it pull at each other."""

    def __init__(self, centre, alpha):
        super().__init__(centre)
        self._alpha = alpha

    def answer(self, push):
        centre = self.centre.array()
        return Answer(lambda worker, part: elastic_step(worker, centre[part], self._alpha))


def elastic_step(worker, centre, alpha):
    """Move a worker's weights and the centre towards each other, in place.

        c <- c + alpha (w - c),  w <- w - alpha (w - c)              from the values before

    worker, centre  float arrays of one dimension, alike in length and dtype; no memory of both is the same
    """
    alpha = worker.dtype.type(alpha)
    for w, c, pull in blocks(worker, centre):
        np.subtract(w, c, out=pull)
        pull *= alpha
        w -= pull
        c += pull
