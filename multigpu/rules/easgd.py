"""Elastic averaging: every tau steps a worker and a centre pull at each other; between them workers explore apart.

    v_i <- mu v_i - lr_p (g_i + eta w_i),  w_i <- w_i + v_i          each step, on worker i alone
    c <- c + alpha (w_i - c),  w_i <- w_i - alpha (w_i - c)          every tau steps of worker i, from the values before

The workers' velocities stay their own.  Each exchange conserves w_i + c.  alpha = 0 leaves the workers to themselves,
alpha = 1 swaps worker and centre.  Rank 0 is the server that holds the centre, which is what is validated and saved;
the workers are the ranks from 1 on: multigpu.rules.server.

Source: Zhang et al. 2015, equations 5 and 6 and algorithm 1 (asynchronous EASGD, with momentum as in Ma et al. 2016).
"""

import pkgutil
from functools import partial

import numpy as np

from multigpu.device.host import HostDevice
from multigpu.exchange.flat import Flat, blocks
from multigpu.partners import greet
from multigpu.rules import POST
from multigpu.rules.bsp import shapes_of, weights_and_velocities
from multigpu.rules.server import SERVER, Client, Server


def connect(config, network, device, partners, recorder, step=0):
    """The Server at rank 0, a Client at the others, as multigpu.rules says; all of them call it."""
    greet(config, network, device, partners, step)
    weights, velocities = weights_and_velocities(network)
    post, host, shapes = pkgutil.resolve_name(POST)(partners), HostDevice(device.on_host), shapes_of(weights)
    if partners.rank == SERVER:
        for velocity in velocities:              # those of a checkpoint are the workers' to go on with
            velocity.set_value(np.zeros_like(velocity.get_value(borrow=True)), borrow=True)
        update = partial(elastic_step, alpha=config.alpha)
        return Server(network, weights, Flat(host, shapes), Flat(host, shapes), update, post, recorder)
    return Client(network, weights, Flat(host, shapes), config.tau, post, recorder)


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
