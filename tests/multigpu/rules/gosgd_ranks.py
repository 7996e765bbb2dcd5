"""Rank functions of tests/multigpu/rules/test_gosgd.py, run by a tests.mpi.MpiTeam."""

import time
from functools import partial
from unittest import mock

import numpy as np

from alexnet.training.loop import Position
from alexnet.training.timing import Lap
from multigpu.device import open_device
from multigpu.rules import gosgd
from multigpu.rules.parameter_server.server import Grant
from tests.multigpu.rules import fakes
from tests.multigpu.rules.fakes import RATE, STEPS, Told, Toy, toy_settings, training

joined = partial(fakes.joined, "gosgd")


def by_hand(comm, weights, pushes, on_host):
    """Let ranks with these weights push as listed, [(from, to), ...], one push per step.

    Return (first number of W, share) of this rank after each step, once no message is pending.
    """
    network, found = Toy(), []
    with joined(comm, network, Told(), on_host) as (_, exchange):
        network.set(weights[comm.rank])
        for step, (sender, receiver) in enumerate(pushes, 1):
            other = receiver if sender == comm.rank else None
            with mock.patch.object(gosgd, "receiver", lambda *_, other=other: other):
                exchange.after_step(step, 0.0, 0.0, RATE, False, False)
            with exchange.consensus():
                pass
            found.append((network.values()[0][0], exchange._share))
    return found


def gossip(comm, steps, p, dawdles):
    """Gossip without training, with different initial values on each rank.

    Return a dict of the initial values, the consensus, the own values, the share and what arrived.
    """
    network, rng = Toy(length=1000), np.random.default_rng(comm.rank)
    with joined(comm, network, Told(), gosgd_p=p) as (_, exchange):
        network.set(rng.normal(size=1), velocity=rng.normal(size=1))
        begun = network.values()
        for step in range(1, steps + 1):
            time.sleep(dawdles[comm.rank] * rng.random())
            exchange.after_step(step, 0.0, 0.0, RATE, False, step == steps)
        with exchange.consensus() as stop:
            mixed = network.values()
        return {
            "begun": begun, "mixed": mixed, "own": network.values(), "share": exchange._share, "stop": stop,
            "arrived": exchange._channel.received,
        }


def late(comm):
    """Return the share of this rank when a push is received as late as possible.

    Rank 1 pushes and enters the consensus at once. Rank 0 receives nothing until all ranks have reported what they
    sent.
    """
    with joined(comm, Toy(), Told()) as (_, exchange):
        gather = exchange._gather

        def deaf(own):
            with mock.patch.object(exchange, "_receive", lambda: False):
                return gather(own)

        exchange._gather = deaf
        with mock.patch.object(gosgd, "receiver", lambda *_: 0 if comm.rank else None):
            exchange.after_step(1, 0.0, 0.0, RATE, False, True)
        with exchange.consensus():
            return exchange._share


def train(comm, dawdles, changes, stops=None, begin=Position(), steps=STEPS):
    """Run a whole training; return a dict of what this rank observed.

    dawdles  {rank: seconds per step}      stops  {rank: number of the stop_requested() call that first returns True}
    """
    rank, size = comm.rank, comm.size
    recorder, network, saved = Told(rank), Toy(dawdle=dawdles.get(rank, 0), pull=0.125), []
    with joined(comm, network, recorder, **changes) as (config, exchange):
        stop_after = (stops or {}).get(rank)
        run = training(
            network, exchange, recorder, rank, size, config, saved, stop_after, shares=(rank, size), steps=steps
        )
        position = exchange.run(run, begin)
    return {
        "position": position, "saved": saved, "steps": network.steps, "validated": network.validated,
        "validations": recorder.validations, "trained": recorder.trained,
    }


def tell_laps(comm):
    """Every rank finishes a lap; return the laps known to this rank afterwards."""
    with joined(comm, Toy(), Told()) as (_, exchange):
        exchange.gather(Lap(1, 0.5, 5120, float(comm.rank), 0, 0, 0, 0))
        with exchange.consensus():
            pass
        return exchange.gather(Lap(2, 0.5, 5120, float(comm.rank), 0, 0, 0, 0))


def fail(comm, case):
    """Rank 1 violates the protocol; the other ranks detect it."""
    with open_device("cpu") as device:
        config = toy_settings(rule="gosgd")
        exchange = gosgd.GosgdRule().connect(config, Toy(), device, comm, Told())
        if comm.rank == 1 and case == "a push that is lost":
            exchange._share /= 2
        if comm.rank == 1 and case == "once too often":
            exchange._entries += 1
        if comm.rank == 1 and case == "another rule's message":
            return exchange._channel.send(Grant(7, 1, False), 0)
        with exchange.consensus():
            return "nothing"
