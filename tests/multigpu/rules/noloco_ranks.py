"""Rank functions of tests/multigpu/rules/test_noloco.py, run by a tests.mpi.MpiTeam."""

import time
from functools import partial

import numpy as np
import pytensor

from alexnet.training.loop import Position
from multigpu.device import open_device
from multigpu.rules.noloco import NolocoRule, PairPush
from multigpu.rules.parameter_server.server import Grant
from tests.multigpu.rules import fakes
from tests.multigpu.rules.fakes import RATE, STEPS, RecordingRecorder, ToyNetwork, toy_settings, train_rank

joined = partial(fakes.joined, "noloco")


class NolocoNetwork(ToyNetwork):
    """A ToyNetwork with the outer momentum and the outer gradient of W; b is a running statistic."""

    def __init__(self, delay=0.0, pull=0.0, gradient=0.0):
        super().__init__(delay=delay, pull=pull)
        values = {"outer_momentum": 0, "outer_gradient": gradient}
        self.rule_state = [
            pytensor.shared(np.full(10, value, "float32"), name=f"W.{name}") for name, value in values.items()
        ]


def outer_steps(comm, pulls, steps, changes, on_host=True, gradient=0.0, consensus_every=None):
    """Do `steps` steps, each of which subtracts pulls[rank] from W and b.

    Return (W, b, velocity of W) of this rank after each step, and (W, m, theta - phi) in a consensus at the end.
    """
    network, found = NolocoNetwork(0, pulls[comm.rank], gradient), []
    with joined(comm, network, RecordingRecorder(), on_host, **changes) as (_, exchange):
        for step in range(1, steps + 1):
            exchange.step(rate=RATE)
            exchange.after_step(step, 0.0, 0.0, RATE, False, False)
            found.append([float(array[0]) for array in network.values()[:3]])
            if consensus_every and step % consensus_every == 0:
                with exchange.consensus():
                    pass
        with exchange.consensus():
            arrays = network.parameters_and_velocities[0], *network.rule_state
            return found, [float(array.get_value()[0]) for array in arrays]


def train(comm, delays, changes, stops=None, begin=Position(), steps=STEPS):
    """Run a whole training; return a dict of what this rank observed. See gosgd_ranks.train for the arguments.

    Rank r subtracts 2**-r per step.
    """
    rank = comm.rank
    recorder, network = RecordingRecorder(rank), NolocoNetwork(delays.get(rank, 0), 2.0**-rank)
    with joined(comm, network, recorder, **changes) as (config, exchange):
        observed = train_rank(network, exchange, recorder, comm, config, stops, begin, steps)
    return observed | {"done": exchange._done}


def stop_without_a_step(comm, rule, changes):
    """Rank 0 stops before its step 2, as while it waits for images; return the steps that this rank has done."""
    with fakes.joined(rule, comm, NolocoNetwork(0.001), RecordingRecorder(), **changes) as (_, exchange):
        step, stop = 0, False
        while not stop:
            step += 1
            exchange.step(rate=RATE)
            stop = exchange.after_step(step, 0.0, 0.0, RATE, False, False).stop or comm.rank == 0
        with exchange.consensus(stop) as over:
            return step if over else None


def wait_for_partner(comm, slow_rank, seconds):
    """Return the seconds that this rank spends in the outer step after one step, which takes one rank some time."""
    with joined(comm, NolocoNetwork(), RecordingRecorder(), noloco_steps=1) as (_, exchange):
        if comm.rank == slow_rank:
            time.sleep(seconds)
        began = time.perf_counter()
        exchange.after_step(1, 0.0, 0.0, RATE, False, False)
        return time.perf_counter() - began


def violate_protocol(comm, case):
    """Rank 1 violates the protocol of the outer step after step 4; rank 0 detects it."""
    with open_device("cpu") as device:
        config = toy_settings(rule="noloco", noloco_steps=4)
        exchange = NolocoRule().connect(config, NolocoNetwork(), device, comm, RecordingRecorder())
        message = {
            "another step": PairPush(8, 1), "an outer step that is over": PairPush(0, 1),
            "another rule's message": Grant(4, 1, False),
        }[case]
        if comm.rank == 1:
            return exchange._channel.send(message, 0)
        if case == "another step":               # it may precede the outer step of rank 0
            exchange._until(lambda: bool(exchange._pushes))
        return exchange.after_step(4, 0.0, 0.0, RATE, False, False)
