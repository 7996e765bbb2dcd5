"""Rank functions of tests/multigpu/rules/test_asgd.py: rank 0 is the server, the others are clients."""

from functools import partial

from multigpu.device import open_device
from multigpu.rules.asgd import AsgdRule
from tests.multigpu.rules import fakes
from tests.multigpu.rules.easgd_ranks import LONG, serve
from tests.multigpu.rules.fakes import RATE, RecordingRecorder, ToyNetwork, TrainableToyNetwork, toy_settings

joined = partial(fakes.joined, "asgd")


def train(comm, networks, changes, steps, on_host=True, length=LONG):
    """Each client starts with weights of 1, takes `steps` steps, and leaves.

    networks  {rank: TrainableToyNetwork's arguments}

    Rank 0 returns (center variable at the end, recorded pushes, log messages). A client returns (its values at the end,
    the elementwise sum of its updates).
    """
    network, recorder = TrainableToyNetwork(length, **networks.get(comm.rank, {})), RecordingRecorder(comm.rank)
    network.set(1)
    with joined(comm, network, recorder, on_host, **changes) as (config, exchange):
        if comm.rank == 0:
            center = serve(comm, network, recorder, config, exchange)[1][-1][1]
            return center, recorder.pushed, recorder.logged
        updates = 0.0
        for step in range(1, steps + 1):
            before = network.values()[0].astype(float)
            exchange.step(rate=RATE)
            updates = updates + (network.values()[0] - before)
            exchange.after_step(step, 0.0, 0.0, RATE, False, False)
        exchange.leave(steps)
    return network.values(), updates


def resume(comm, changes, step):
    """Connect after `step` steps and leave; return the server's warnings."""
    network, recorder = ToyNetwork(), RecordingRecorder()
    config = toy_settings(rule="asgd", **changes)
    with open_device("cpu") as device, AsgdRule().connect(config, network, device, comm, recorder, step) as exchange:
        if comm.rank:
            return exchange.leave(step)
        serve(comm, network, recorder, config, exchange)
    return recorder.warnings
