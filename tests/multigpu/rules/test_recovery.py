"""Recovery: after a death all workers continue at one position, with the same state."""

import zlib
from unittest import mock

import numpy as np
import pytest

from alexnet.training.loop import Position
from multigpu.communicator import Done, PeerDied, PipeCommunicator
from multigpu.rules import recovery
from multigpu.rules.recovery import Recovery
from tests.multigpu.exchange.workers import NormalisedNetwork, Team
from tests.tiny import settings

NEW = None                                       # the position of a replacement
STEP_10, STEP_11 = Position(0, 10, 10), Position(0, 11, 11)
AFTER_EPOCH = Position(1, 0, 11, (0.25,))


def network_after(step):
    """Return a network whose state depends on the step only; step -1 stands for a new worker."""
    from alexnet.training.network import Network
    from alexnet.training.updates import bind_update_rule

    network = Network(NormalisedNetwork(np.random.default_rng(0)), np.zeros((3, 6, 6), "float32"),
                      bind_update_rule(settings("none", "none")), "numpy", crop=False)
    rng = np.random.default_rng(step + 1)
    state = {name: rng.random(array.shape).astype(array.dtype) for name, array in network.get_state().items()}
    network.set_state(state)
    network.step.set_value(np.int64(step))
    return network


def digest(network):
    return {name: zlib.crc32(np.ascontiguousarray(array)) for name, array in network.get_state().items()}


def die_after_copying(comm, *_):
    comm.allgather(Done(0))
    raise PeerDied("worker 1 has died")


def share(seat, positions, interrupted=False, source_dies=False):
    """Share the state of workers at `positions`, a list for each rank; return what the rank has then."""
    network = network_after(positions[seat.rank][-1].iteration if positions[seat.rank] else -1)
    comm = PipeCommunicator(seat.rank, seat.pipes)
    found = Recovery(network, comm)
    for position in positions[seat.rank]:
        found.advance(position)
        found.keep({"iteration": position.iteration})
    if interrupted:
        found.begin_step()
        network.step.set_value(network.step.get_value() + 1)
        for variable in network.running_statistics:
            variable.set_value(variable.get_value() + 1)
    received = None
    if source_dies:
        with mock.patch.object(recovery, "first_obstacle", die_after_copying), pytest.raises(PeerDied):
            found.share()
    else:
        received = found.share()
    return digest(network), found.position, received, found.record


@pytest.fixture(scope="module")
def team():
    team = Team(3)
    yield team
    team.close()


@pytest.mark.parametrize(("positions", "position", "received"), [
    ([[STEP_10], [STEP_10], []], STEP_10, [False, False, True]),
    ([[], [STEP_11], []], STEP_11, [True, False, True]),
    ([[STEP_10], [STEP_10, STEP_11], []], STEP_11, [True, False, True]),             # rank 2 answered rank 1 only
    ([[STEP_11, AFTER_EPOCH], [STEP_11], []], AFTER_EPOCH, [False, False, True]),    # rank 0 has validated
    ([[], [STEP_11, AFTER_EPOCH], [STEP_11, AFTER_EPOCH]], STEP_11, [True, False, False]),   # no record of it
])
def test_all_workers_get_the_state_of_the_last_step(team, positions, position, received):
    results = team.run(share, positions)
    assert all(not isinstance(result, Exception) for result in results), results
    assert [result[1] for result in results] == [position] * 3
    assert [result[2] for result in results] == received
    for found, _, taken, record in results:
        assert found == digest(network_after(position.iteration))
        assert record == {"iteration": position.iteration} or not taken


def test_interrupted_step_leaves_no_trace(team):
    results = team.run(share, [[STEP_10], [STEP_10], []], True)
    assert [result[0] for result in results] == [digest(network_after(10))] * 3


def test_received_state_is_complete_if_the_source_dies_afterwards(team):
    results = team.run(share, [[STEP_10], [STEP_11], []], False, True)
    for rank in (0, 2):
        assert results[rank][:2] == (digest(network_after(11)), STEP_11)
