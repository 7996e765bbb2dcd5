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
from tests.multigpu.rules.fakes import RATE, STEPS, RecordingRecorder, ToyNetwork, toy_settings, train_rank

joined = partial(fakes.joined, "gosgd")


def push_in_order(comm, weights, pushes, on_host):
    """Let ranks with these weights push as listed, [(from, to), ...], one push per step.

    Return (first number of W, share) of this rank after each step, once no message is pending.
    """
    network, found = ToyNetwork(), []
    with joined(comm, network, RecordingRecorder(), on_host) as (_, exchange):
        network.set(weights[comm.rank])
        for step, (sender, receiver) in enumerate(pushes, 1):
            other = receiver if sender == comm.rank else None
            with mock.patch.object(gosgd, "receiver", lambda *_, other=other: other):
                exchange.after_step(step, 0.0, 0.0, RATE, False, False)
            with exchange.consensus():
                pass
            found.append((network.values()[0][0], exchange._share))
    return found


def gossip(comm, steps, p, delays):
    """Gossip without training, with different initial values on each rank.

    Return a dict of the initial values, the consensus, the own values, the share and what arrived.
    """
    network, rng = ToyNetwork(length=1000), np.random.default_rng(comm.rank)
    with joined(comm, network, RecordingRecorder(), gosgd_p=p) as (_, exchange):
        network.set(rng.normal(size=1), velocity=rng.normal(size=1))
        initial = network.values()
        for step in range(1, steps + 1):
            time.sleep(delays[comm.rank] * rng.random())
            exchange.after_step(step, 0.0, 0.0, RATE, False, step == steps)
        with exchange.consensus() as stop:
            consensus = network.values()
        return {
            "initial": initial, "consensus": consensus, "own": network.values(), "share": exchange._share, "stop": stop,
            "arrived": exchange._channel.received,
        }


def push_late(comm):
    """Return the share of this rank when a push is received as late as possible.

    Rank 1 pushes and enters the consensus at once. Rank 0 receives nothing until all ranks have reported what they
    sent.
    """
    with joined(comm, ToyNetwork(), RecordingRecorder()) as (_, exchange):
        gather = exchange._gather

        def gather_without_receiving(own):
            with mock.patch.object(exchange, "_receive", lambda: False):
                return gather(own)

        exchange._gather = gather_without_receiving
        with mock.patch.object(gosgd, "receiver", lambda *_: 0 if comm.rank else None):
            exchange.after_step(1, 0.0, 0.0, RATE, False, True)
        with exchange.consensus():
            return exchange._share


def train(comm, delays, changes, stops=None, begin=Position(), steps=STEPS):
    """Run a whole training; return a dict of what this rank observed.

    delays  {rank: seconds per step}      stops  {rank: number of the stop_requested() call that first returns True}
    """
    rank = comm.rank
    recorder, network = RecordingRecorder(rank), ToyNetwork(delay=delays.get(rank, 0), pull=0.125)
    with joined(comm, network, recorder, **changes) as (config, exchange):
        observed = train_rank(network, exchange, recorder, comm, config, stops, begin, steps)
    return observed | {"trained": recorder.trained}


def report_laps(comm):
    """Every rank finishes a lap; return the laps known to this rank afterwards."""
    with joined(comm, ToyNetwork(), RecordingRecorder()) as (_, exchange):
        exchange.gather(Lap(1, 0.5, 5120, float(comm.rank), 0, 0, 0, 0))
        with exchange.consensus():
            pass
        return exchange.gather(Lap(2, 0.5, 5120, float(comm.rank), 0, 0, 0, 0))


def violate_protocol(comm, case):
    """Rank 1 violates the protocol; the other ranks detect it."""
    with open_device("cpu") as device:
        config = toy_settings(rule="gosgd")
        exchange = gosgd.GosgdRule().connect(config, ToyNetwork(), device, comm, RecordingRecorder())
        if comm.rank == 1 and case == "a push that is lost":
            exchange._share /= 2
        if comm.rank == 1 and case == "once too often":
            exchange._entries += 1
        if comm.rank == 1 and case == "another rule's message":
            return exchange._channel.send(Grant(7, 1, False), 0)
        with exchange.consensus():
            return "nothing"
