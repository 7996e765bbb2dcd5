"""Connected worker processes for the tests of rules bsp and slowmo and of strategy peer, and the tasks that they run.

A task is a function task(seat, *arguments). Each process runs it and returns its result to the test.
"""

import multiprocessing
import os
import pkgutil
import sys
import time
import zlib
from collections import Counter
from functools import partial
from multiprocessing import connection
from typing import NamedTuple
from unittest import mock

import numpy as np

from alexnet.nn import BatchNorm, Conv, Dense, Flatten, Sequential
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from multigpu.communicator import PipeCommunicator
from multigpu.device import DeviceError, open_device
from multigpu.exchange import peer
from multigpu.launch.process import CONTEXT, end, environment, pipes_between, start
from multigpu.rules import RULES, bsp
from multigpu.rules.single import SingleWorker
from tests.multigpu.exchange.fakes import CountingPipe, FakeNetwork, FakeRecorder, KillingPipe, random_arrays
from tests.tiny import settings

BATCH, CLASSES, RATE, MOMENTUM = 4, 3, np.float32(0.05), partial(momentum_sgd, momentum=0.9)
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([__name__])        # a process starts in milliseconds instead of a second
COMPILED = {}                                    # networks of former tasks of this process


# ---- processes


class Seat(NamedTuple):
    """The place of a worker in its team: its rank, the number of workers, and the pipes to the others by rank."""

    rank: int
    size: int
    pipes: dict


class Team:
    """`size` connected worker processes; run() executes a task in all of them or in the first few.

    Args:
        variables: of their environment. Without them, the processes are forked from one that has imported this module.
    """

    def __init__(self, size, **variables):
        self.size, self.variables = size, variables
        self.start()

    def start(self):
        self.pipes, self.processes = [], []
        ends = pipes_between(range(self.size))
        context = CONTEXT if self.variables else FORKED
        path = [*filter(None, self.variables.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
        with environment(**self.variables), mock.patch.object(sys, "path", path):    # for spawned processes
            for rank in range(self.size):
                pipe, theirs = CONTEXT.Pipe()
                self.pipes.append(pipe)
                self.processes.append(context.Process(target=serve, args=(rank, ends[rank], theirs)))
                start(self.processes[-1], threads=1)
                theirs.close()
        for pipes in ends.values():              # close our copies: otherwise a worker's death causes no EOF
            for pipe in pipes.values():
                pipe.close()

    def run(self, task, *arguments, size=None, seconds=60):
        """Return one entry per worker: the task's result, the exception it raised, or None if the worker died."""
        if not self.pipes:
            self.start()
        pipes = self.pipes[: size or self.size]
        for pipe in pipes:
            pipe.send((task, len(pipes), arguments))
        deadline, results, waiting = time.monotonic() + seconds, [None] * len(pipes), set(pipes)
        while waiting:
            ready = connection.wait(waiting, max(0, deadline - time.monotonic()))
            if not ready:
                self.close(grace=0)
                raise TimeoutError(f"{len(waiting)} of {len(pipes)} workers still wait after {seconds} s")
            for pipe in ready:
                waiting.remove(pipe)
                try:
                    results[pipes.index(pipe)] = pipe.recv()
                except (EOFError, ConnectionError):
                    continue
        if any(result is None or isinstance(result, Exception) for result in results):
            self.close()                         # unread messages may remain in the pipes
        return results

    def close(self, grace=5):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            end(process, grace)
        self.pipes, self.processes = [], []


def serve(rank, pipes, control):
    """Main function of a worker process: run tasks until the test closes the pipe."""
    try:
        while True:
            task, size, arguments = control.recv()
            seat = Seat(rank, size, {other: pipe for other, pipe in pipes.items() if other < size})
            try:
                result = task(seat, *arguments)
            except (AssertionError, ValueError, RuntimeError) as error:
                result = error
            control.send(result)
    except (EOFError, ConnectionError):
        return


def counting(seat, sent):
    """Return a PipeCommunicator with counted messages; with emulated GPUs it also checks for pending copies."""
    emulated = os.environ.get("EMUCUDA_DEVICES")
    pending = pkgutil.resolve_name("tests.cuda_emulator:pending") if emulated else lambda: 0
    return PipeCommunicator(seat.rank, {other: CountingPipe(pipe, pending, sent) for other, pipe in seat.pipes.items()})


# ---- training


class SmallNetwork(Sequential):
    """Three layers for images of 3 x 6 x 6."""

    channels, image_size = 3, 6

    def __init__(self, rng):
        super().__init__(
            Conv(rng, 3, 4, size=3, std=0.1), Flatten(),                                 # 4 x 4 x 4
            Dense(rng, 64, 128, std=0.1),
            Dense(rng, 128, CLASSES, relu=False, std=0.1, bias=0.0),
        )


class NormalisedNetwork(Sequential):
    """SmallNetwork with batch normalisation."""

    channels, image_size = 3, 6

    def __init__(self, rng):
        super().__init__(
            Conv(rng, 3, 4, size=3, std=0.1, bias=None), BatchNorm(4), Flatten(),
            Dense(rng, 64, CLASSES, relu=False, std=0.1, bias=0.0),
        )


class Trained(NamedTuple):
    """Result of train(): state and checksums after each step, costs, warnings, and number of messages sent by type."""

    states: list
    digests: list
    costs: list
    warnings: list
    sent: Counter


def train(seat, devices, steps, changes, parts=1, stop_at=None, backend="cpu", kind=SmallNetwork):
    """Train on synthetic batches with the exchange that the settings `changes` select; return Trained.

    parts    number of batches that this worker combines into one
    stop_at  {rank: first step at which a stop is requested}
    """
    trained, config = Trained([], [], [], [], Counter()), settings_of(changes)
    comm = counting(seat, trained.sent)
    network = compiled_before(configured(make_network(backend, kind), config, comm), backend)
    with (
        open_device(devices[seat.rank], network.computes_on_host) as device,
        join(config, network, device, comm, trained.warnings) as exchange,
    ):
        for step in range(1, steps + 1):
            inputs = synthetic_batch(step, seat.rank, seat.size, parts)
            cost, error = exchange.step(*inputs, rate=RATE)
            stop = step >= (stop_at or {}).get(seat.rank, steps + 1)
            agreed = exchange.after_step(step, cost, error, RATE, stop, step == steps)
            trained.costs.append(agreed.cost)
            trained.states.append({name: np.array(array) for name, array in network.get_state().items()})
            trained.digests.append({name: zlib.crc32(array) for name, array in trained.states[-1].items()})
            if agreed.stop:
                break
    return trained


def train_replicas(size, steps):
    """Train `size` replicas of NormalisedNetwork in this process; return the state of the first after each step.

    Each normalises its own batch. After each step, gradients and running statistics are averaged.
    """
    replicas, states = [make_network(kind=NormalisedNetwork) for _ in range(size)], []
    for step in range(1, steps + 1):
        for rank, network in enumerate(replicas):
            network.compute(*synthetic_batch(step, rank, size, 1))
        for variables in zip(*(each.gradients + each.running_statistics for each in replicas), strict=True):
            mean = np.mean([variable.get_value() for variable in variables], axis=0)
            for variable in variables:
                variable.set_value(mean)
        for network in replicas:
            network.apply(RATE)
        states.append({name: np.array(array) for name, array in replicas[0].get_state().items()})
    return states


def arrays_in_place(seat, steps):
    """Return for each step the names of the arrays stored in the flat buffer after the network's update."""
    config, comm, found = settings_of({}), counting(seat, Counter()), []
    network = configured(make_network(), config, comm)
    with open_device("cpu") as device, join(config, network, device, comm, []) as exchange:
        flat = exchange._groups[0].strategy._mesh.flat.array()
        for step in range(1, steps + 1):
            cost, error = exchange.step(*synthetic_batch(step, seat.rank, seat.size, 1), rate=RATE)
            arrays = {each.name: each.get_value(borrow=True) for each in network.parameters_and_velocities}
            found.append({name for name, array in arrays.items() if np.shares_memory(array, flat)})
            exchange.after_step(step, cost, error, RATE, False, True)
    return found


def settings_of(changes):
    return settings("none", "none", **{"batch_size": BATCH, **changes})


def configured(network, config, comm):
    """Prepare a new network for the exchange of the settings; return it."""
    if comm.size > 1:
        rule = RULES.find(config.rule)()
        network.rule_state = rule.state(network, config)
        rule.configure(config, network, comm)
    return network


def compiled_before(network, graphs):
    """Return the network of a former task that has the same functions, in the state of this one; else this one.

    Compiling the functions takes longer than the steps of a task.

    graphs  identifies the arguments of make_network() besides the model
    """
    variables = [(each.name, each.type.shape) for each in (*network.rule_state, *sums_of(network))]
    found = COMPILED.setdefault(
        repr((graphs, type(network.model), variables, network.factored, network.workers)), network
    )
    if found is not network:
        found.set_state(network.get_state())
        for variable in (*found.gradients, *sums_of(found)):
            variable.set_value(np.zeros(variable.type.shape, variable.type.dtype))
    return found


def sums_of(network):
    """Return the variables with the sums of the network's state."""
    return [each for each in (network.sums_read, network.sums_written) if each is not None]


def join(config, network, device, comm, warnings):
    """Connect this worker's configured network and return its Synchronizer."""
    if comm.size == 1:
        return SingleWorker(network)
    return RULES.find(config.rule)().connect(config, network, device, comm, FakeRecorder(warnings.append))


def make_network(backend="cpu", kind=SmallNetwork, update=MOMENTUM, **arguments):
    """Return a network with the same initial weights on every call."""
    return Network(
        kind(np.random.default_rng(0)), np.zeros((3, 6, 6), "float32"), update, backend, crop=False, **arguments
    )


def synthetic_batch(step, rank, size, parts):
    """Return this rank's images and labels, `parts` batches of BATCH.

    All ranks slice the same size * parts batches, which are generated from the step number.
    """
    rng, n = np.random.default_rng(step), size * parts * BATCH
    images = rng.normal(size=(3, 6, 6, n)).astype("float32")
    labels = rng.integers(0, CLASSES, n, dtype=np.int32)
    mine = slice(rank * parts * BATCH, (rank + 1) * parts * BATCH)
    return np.ascontiguousarray(images[..., mine]), labels[mine]


# ---- exchanges without a network


def mean_of(step, size):
    """Return the bit-exact mean over the numbers of all ranks at a step."""
    total, *rest = (random_arrays(step, rank) for rank in range(size))
    for each in rest:
        total = [one + other for one, other in zip(total, each, strict=True)]
    return [one / np.float32(size) for one in total]


def exchange_values(seat, devices, steps, kind=None, slow=None, broken=None, skip=None, changes=None):
    """Exchange `steps` times and check every mean; return (warnings, messages sent by type).

    kind    name of the strategy, PairwiseAverage or ShardedAverage; None: the choice of connect()
    slow    (rank, verb): the device of this worker delays this operation
    broken  (rank, verb): the device of this worker cannot perform this operation
    skip    {rank: a step that this rank omits}
    """
    network, warnings, sent = FakeNetwork(), [], Counter()
    strategies = {name: getattr(peer, kind or name) for name in ("PairwiseAverage", "ShardedAverage")}
    with mock.patch.multiple(peer, **strategies), open_device(devices[seat.rank]) as device:
        if slow and seat.rank == slow[0]:
            delay(device, slow[1])
        if broken and seat.rank == broken[0]:
            refuse(device, broken[1])
        config = settings("none", "none", **(changes or {}))
        comm = counting(seat, sent)
        with bsp.BspRule().connect(config, network, device, comm, FakeRecorder(warnings.append)) as exchange:
            for step in range(1, steps + 1):
                if step == (skip or {}).get(seat.rank):
                    continue
                network.set(step, seat.rank)
                exchange.after_step(step, 0.0, 0.0, RATE, False, False)
                for found, expected in zip(network.values(), mean_of(step, seat.size), strict=True):
                    np.testing.assert_array_equal(found, expected, f"step {step}, worker {seat.rank}")
    return warnings, sent


def delay(device, verb):
    """Make an operation of the device start late."""
    original = getattr(device, verb)

    def delayed(*arguments, **named):
        time.sleep(0.02)
        return original(*arguments, **named)

    setattr(device, verb, delayed)


def refuse(device, verb):
    """Make the memory of other workers unreachable for the device: can_reach reports it, or open raises."""
    sentence = f"this device cannot {verb}"
    error = DeviceError(sentence) if verb == "open" else None
    setattr(device, verb, mock.Mock(return_value=sentence, side_effect=error))


def sum_up(seat, values, stops):
    """Call exchange.total() twice."""
    with open_device("cpu") as device:
        config = settings("none", "none")
        comm = counting(seat, Counter())
        with bsp.BspRule().connect(config, FakeNetwork(), device, comm, FakeRecorder()) as exchange:
            first = exchange.total(values[seat.rank], False)
            return *first, *exchange.total(np.ones(2), stops[seat.rank])


def connect(seat, changes, steps, weight):
    """Call connect() with settings, step counts and weights that may differ between workers."""
    network = FakeNetwork()
    network.set(0, weight[seat.rank])
    with open_device("cpu") as device:
        config = settings("none", "none", **changes[seat.rank])
        comm = counting(seat, Counter())
        bsp.BspRule().connect(config, network, device, comm, FakeRecorder(), steps[seat.rank]).close()
        return "done"


def close_in_order(seat, folder):
    """Close an exchange; return the workers that still had this worker's buffer open when it was freed."""
    with open_device("cpu") as device:
        comm = counting(seat, Counter())
        exchange = bsp.BspRule().connect(settings("none", "none"), FakeNetwork(), device, comm, FakeRecorder())
        late, mesh = [], exchange._groups[0].strategy._mesh
        own = mesh.flat.buffer
        for other, buffer in mesh.others.items():
            mark, close = folder / f"{seat.rank} has closed {other}", buffer.close
            buffer.close = lambda mark=mark, close=close: (time.sleep(0.1), mark.touch(), close())
        free, marks = own.close, [folder / f"{other} has closed {seat.rank}" for other in seat.pipes]
        own.close = lambda: (late.extend(mark.name for mark in marks if not mark.exists()), free())
        exchange.close()
        return late


def die_training(seat, message):
    """Train with overlap; worker 1 is killed instead of sending its message number `message`."""
    remaining = [message]
    if seat.rank == 1:
        seat = seat._replace(pipes={other: KillingPipe(pipe, remaining) for other, pipe in seat.pipes.items()})
    return train(seat, ["cpu"] * seat.size, 2, {"exchange_what": "gradients"})


def diverge(seat):
    """Do a step with overlap in which the cost of worker 1 is NaN, so that it leaves; return its cost."""
    config, comm = settings_of({"exchange_what": "gradients"}), counting(seat, Counter())
    network = configured(make_network(), config, comm)
    images, labels = synthetic_batch(1, seat.rank, seat.size, 1)
    if seat.rank == 1:
        images[:] = np.nan
    with open_device("cpu") as device:
        exchange = join(config, network, device, comm, [])
        cost, error = exchange.step(images, labels, rate=RATE)
        if np.isnan(cost):
            for pipe in seat.pipes.values():
                pipe.close()
            return float(cost)
        exchange.after_step(1, cost, error, RATE, False, False)
        return float(cost)


def die(seat, message):
    """Run two exchanges and a sum; worker 1 is killed instead of sending its message number `message`."""
    remaining = [message]
    pipes = seat.pipes
    if seat.rank == 1:
        pipes = {other: KillingPipe(pipe, remaining) for other, pipe in pipes.items()}
    network = FakeNetwork()
    with open_device("cpu") as device:
        comm = PipeCommunicator(seat.rank, pipes)
        exchange = bsp.BspRule().connect(settings("none", "none"), network, device, comm, FakeRecorder())
        for step in (1, 2):
            network.set(step, seat.rank)
            exchange.after_step(step, 0.0, 0.0, RATE, False, False)
        exchange.total([1.0], False)
        exchange.close()
        return "done"
