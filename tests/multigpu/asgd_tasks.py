"""What ranks do for tests/multigpu/test_asgd.py, as tests.mpi.MpiTeam has it: rank 0 serves, others are clients."""

from contextlib import contextmanager

from multigpu.device import open_device
from multigpu.rules import asgd
from tests.multigpu.easgd_tasks import LONG, serve
from tests.multigpu.rules_doubles import RATE, Learner, Told, toy_settings


@contextmanager
def joined(partners, network, recorder, on_host=True, **changes):
    """This rank's exchange."""
    config = toy_settings(rule="asgd", **changes)
    with open_device("cpu", on_host) as device, asgd.connect(config, network, device, partners, recorder) as exchange:
        yield config, exchange


def train(partners, learners, changes, steps, on_host=True, length=LONG):
    """Each client takes so many steps from weights 1, and leaves.

    learners  {rank: Learner's arguments}
    Returns of rank 0 (the centre at the end, pushes recorded, what was logged), of a client (what it holds at the end,
    the sum of its own updates of each number).
    """
    network, recorder = Learner(length, **learners.get(partners.rank, {})), Told(partners.rank)
    network.set(1)
    with joined(partners, network, recorder, on_host, **changes) as (config, exchange):
        if partners.rank == 0:
            centre = serve(partners, network, recorder, config, exchange)[1][-1][1]
            return centre, recorder.pushed, recorder.logged
        moved = 0.0
        for step in range(1, steps + 1):
            before = network.values()[0].astype(float)
            exchange.step(rate=RATE)
            moved = moved + (network.values()[0] - before)
            exchange.after_step(step, 0.0, 0.0, RATE, False, False)
        exchange.leave(steps)
    return network.values(), moved
