"""Damage of the state: a flipped bit in weights, velocities or an exchanged gradient ends the run in the same step.

The workers are threads of this process.
"""

import threading
from functools import cache, partial

import numpy as np
import pytest

from alexnet.nn import Dense, Flatten, Sequential
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Position
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from multigpu.communicator import Communicator, StateDamaged, StateDigest
from multigpu.device.host import HostDevice
from multigpu.exchange.base import Strategy
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.peer import ShardedAverage
from multigpu.rules.averaging import Bsp
from multigpu.rules.gradients import GradientBsp
from multigpu.rules.groups import ParameterGroup, shapes_of
from multigpu.rules.single import SingleWorker
from multigpu.rules.state_check import check_states, require_as_written

RATE = np.float32(0.1)
NAMES = [(2, "workers 0 and 1 differ"), (3, "worker 1 differ from those of the 2 others")]


class Small(Sequential):
    channels, image_size = 1, 4

    def __init__(self, rng):
        super().__init__(Flatten(), Dense(rng, 16, 300, std=0.1), Dense(rng, 300, 3, relu=False, std=0.1, bias=0.0))


class ThreadComm(Communicator):
    """Connects threads of this process; one of them runs at a time."""

    over_mpi, on_one_host = False, True
    set_pid = detach = None

    def __init__(self, rank, size, messages, barrier, running):
        self.rank, self.size = rank, size
        self._messages, self._barrier, self._running = messages, barrier, running

    def allgather(self, message):
        self._messages[self.rank] = message
        self._wait()
        found = list(self._messages)
        self._wait()
        return found

    def _wait(self):
        self._running.release()
        self._barrier.wait(20)
        self._running.acquire()


class Mean(Strategy):
    connect = close = None

    def __init__(self, flats, comm, rank):
        super().__init__(flats[rank])
        others = {other: flat.buffer for other, flat in enumerate(flats) if other != rank}
        self._mean = ShardedAverage(self.device, comm, self.flat.buffer, others)

    def average(self, step):
        self._mean.average(step)


def make_network(**sums):
    network = Network(Small(np.random.default_rng(0)), np.zeros((1, 4, 4), "float32"),
                      partial(momentum_sgd, momentum=0.9), crop=False)
    network.sum_state(**sums)
    return network


@cache
def initial_state():
    """Return the state before the first step."""
    return make_network().get_state()


@cache
def compiled_network(rank, what):
    """Return the network of a worker, which later calls return again."""
    return make_network(**{"read" if what == "gradients" else "written": 0})


def batch(step, rank):
    rng = np.random.default_rng((step, rank))
    return rng.normal(size=(1, 4, 4, 2)).astype("float32"), rng.integers(0, 3, 2, dtype=np.int32)


def flip(variable, bit=20, element=1):
    variable.get_value(borrow=True).reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)


def train(size, what, damage, steps=4):
    """Train `size` workers; return (completed steps, error) of each. damage(network, rank, step) runs before a step."""
    networks = [compiled_network(rank, what) for rank in range(size)]
    for network in networks:
        network.set_state({name: np.array(array) for name, array in initial_state().items()})
    exchanged = [each.gradients if what == "gradients" else each.parameters_and_velocities for each in networks]
    device = HostDevice()
    flats = [FlatBuffer(device, shapes_of(variables)) for variables in exchanged]
    messages, barrier, running = [None] * size, threading.Barrier(size), threading.Lock()
    results = [None] * size

    def work(rank):
        comm = ThreadComm(rank, size, messages, barrier, running)
        group = ParameterGroup(exchanged[rank], Mean(flats, comm, rank))
        if what == "gradients":
            worker = GradientBsp(networks[rank], [group], None, comm, WorkerRecorder(rank), compares=True)
        else:
            worker = Bsp(networks[rank], [group], comm, WorkerRecorder(rank))
        done, error = 0, None
        with running:
            try:
                for step in range(1, steps + 1):
                    damage(networks[rank], rank, step)
                    results_of_step = worker.step(*batch(step, rank), rate=RATE)
                    damage(networks[rank], rank, step + 0.5)
                    worker.after_step(step, *results_of_step, RATE, False, step == steps)
                    done = step
            except StateDamaged as damaged:
                error = str(damaged)
        results[rank] = done, error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def damage_of(rank, moment, variable):
    """Return a function that flips a bit of variable(network) of this worker at this moment."""
    return lambda network, *at: flip(variable(network)) if at == (rank, moment) else None


def test_intact_workers_report_nothing():
    for what in ("gradients", "weights_and_momentum"):
        assert train(3, what, lambda *moment: None) == [(4, None)] * 3


@pytest.mark.parametrize("variable", [0, -1], ids=["weight", "velocity"])
@pytest.mark.parametrize(("size", "names"), NAMES)
def test_a_worker_whose_memory_changes_is_named(size, names, variable):
    """The update of step 2 reads the flipped bit, and the messages of step 3 report what it has written."""
    found = train(size, "gradients", damage_of(1, 2, lambda network: network.parameters_and_velocities[variable]))
    assert {done for done, _ in found} == {2}
    assert {error.split(":")[0] for _, error in found} == {f"after step 2 weights or velocities of {names}"}
    assert "resume from the checkpoint before" in found[0][1]


def damage_mean(rank, step, monkeypatch):
    """Flip a bit of the mean gradient of one worker after the exchange of this step."""
    original = Mean.average

    def average(self, at):
        original(self, at)
        if at == step and self._mean._comm.rank == rank:
            self.flat.array().view(np.uint32)[7] ^= np.uint32(1 << 25)

    monkeypatch.setattr(Mean, "average", average)


@pytest.mark.parametrize(("size", "names"), NAMES)
def test_a_damaged_mean_is_reported_before_the_next_exchange(size, names, monkeypatch):
    damage_mean(1, 2, monkeypatch)
    found = train(size, "gradients", lambda *moment: None)
    assert {done for done, _ in found} == {2}
    assert {error.split(":")[0] for _, error in found} == {f"after step 2 weights or velocities of {names}"}


def test_the_last_step_is_compared_before_the_checkpoint(monkeypatch):
    damage_mean(0, 4, monkeypatch)
    assert {done for done, _ in train(3, "gradients", lambda *moment: None)} == {3}


def test_exchanged_weights_are_compared_before_they_are_averaged():
    found = train(3, "weights_and_momentum", damage_of(1, 3, lambda network: network.parameters_and_velocities[0]))
    assert {done for done, _ in found} == {2}
    assert {error.split(" differ")[0] for _, error in found} == {"after step 2 weights or velocities of worker 1"}


def test_a_single_worker_detects_a_change_of_its_memory():
    network = make_network()
    worker = SingleWorker(network)
    for step in range(1, 4):
        worker.after_step(step, *worker.step(*batch(step, 0), rate=RATE), RATE, False, False)
    flip(network.parameters_and_velocities[0], bit=0)
    inputs = worker.step(*batch(4, 0), rate=RATE)
    with pytest.raises(StateDamaged, match="have changed in memory before step 4: an error of memory"):
        worker.after_step(4, *inputs, RATE, False, False)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_change_after_the_last_update_is_detected_before_saving(steps):
    network = make_network()
    worker = SingleWorker(network)
    worker.begin(Position())
    for step in range(1, steps + 1):
        worker.after_step(step, *worker.step(*batch(step, 0), rate=RATE), RATE, False, False)
    require_as_written(network, steps)
    flip(network.parameters_and_velocities[-1], bit=0)
    with pytest.raises(StateDamaged, match=f"have changed in memory after step {steps}: an error of memory"):
        require_as_written(network, steps)


def test_a_change_before_the_first_step_is_detected():
    network = make_network()
    worker = SingleWorker(network)
    worker.begin(Position())
    flip(network.parameters_and_velocities[0], bit=0)
    result = worker.step(*batch(1, 0), rate=RATE)
    with pytest.raises(StateDamaged, match="before step 1"):
        worker.after_step(1, *result, RATE, False, False)


def test_unknown_states_are_not_compared():
    check_states([None, StateDigest(3, 1), StateDigest(3, 1)])
    check_states([None, None])


def test_all_workers_without_a_majority_are_named():
    with pytest.raises(StateDamaged, match="of workers 0 and 1 and 2 and 3 differ:"):
        check_states([StateDigest(3, digest) for digest in (1, 1, 2, 2)])
