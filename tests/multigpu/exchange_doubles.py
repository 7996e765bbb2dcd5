"""Worker processes for the tests of the exchange: a team of connected processes that run tasks for the test.

A task is a function task(seat, *arguments). Each process runs it and returns its result to the test.
"""

import os
import pkgutil
import signal
import sys
import time
import zlib
from collections import Counter
from functools import partial
from multiprocessing import connection
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytensor

from alexnet.nn import Conv, Dense, Flatten, Sequential
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from multigpu.communicator import PipeCommunicator
from multigpu.device import DeviceError, open_device
from multigpu.exchange import peer
from multigpu.process import CONTEXT, end, environment, pipes_between, start
from multigpu.rules import bsp
from multigpu.rules.single import SingleWorker
from tests.tiny import settings

BATCH, CLASSES, RATE = 4, 3, np.float32(0.05)
SHAPES = {"W": (7, 5), "b": (5,), "scalar": (), "V": (3, 33, 11)}


# ---- processes


class Seat(NamedTuple):
    """The place of a worker in its team: its rank, the number of workers, and the pipes to the others by rank."""

    rank: int
    size: int
    pipes: dict


class Team:
    """`size` connected worker processes; run() executes a task in all of them or in the first few."""

    def __init__(self, size, **variables):
        self.size, self.variables = size, variables
        self.start()

    def start(self):
        self.pipes, self.processes = [], []
        ends = pipes_between(range(self.size))
        path = [*filter(None, self.variables.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
        with environment(**self.variables), mock.patch.object(sys, "path", path):    # for spawned processes
            for rank in range(self.size):
                pipe, theirs = CONTEXT.Pipe()
                self.pipes.append(pipe)
                self.processes.append(CONTEXT.Process(target=sit, args=(rank, ends[rank], theirs)))
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


def sit(rank, pipes, control):
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


class Listening(WorkerRecorder):
    """A recorder that passes warnings to a callback."""

    def __init__(self, warn=print):
        super().__init__(0)
        self.warn = warn


class Watched:
    """A pipe end that counts messages by type and refuses to send while copies are pending."""

    def __init__(self, pipe, pending, sent):
        self._pipe, self._pending, self._sent = pipe, pending, sent
        self.recv, self.fileno = pipe.recv, pipe.fileno

    def send(self, message):
        left = self._pending()
        if left:
            raise RuntimeError(f"{type(message).__name__} is sent while {left} copies are under way")
        self._sent[type(message).__name__] += 1
        self._pipe.send(message)


class Mortal:
    """A pipe end of a worker that kills itself instead of sending its message number `left[0]`."""

    def __init__(self, pipe, left):
        self._pipe, self._left = pipe, left
        self.recv, self.fileno = pipe.recv, pipe.fileno

    def send(self, message):
        if not self._left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left[0] -= 1
        self._pipe.send(message)


def watched(seat, sent):
    """Return a PipeCommunicator with counted messages; with emulated GPUs it also checks for pending copies."""
    emulated = os.environ.get("EMUCUDA_DEVICES")
    pending = pkgutil.resolve_name("tests.cuda_emulator:pending") if emulated else lambda: 0
    return PipeCommunicator(seat.rank, {other: Watched(pipe, pending, sent) for other, pipe in seat.pipes.items()})


# ---- training


class Smallest(Sequential):
    """Three layers for images of 3 x 6 x 6."""

    channels, image_size = 3, 6

    def __init__(self, rng):
        super().__init__(
            Conv(rng, 3, 4, size=3, std=0.1), Flatten(),                                 # 4 x 4 x 4
            Dense(rng, 64, 128, std=0.1),
            Dense(rng, 128, CLASSES, relu=False, std=0.1, bias=0.0),
        )


class Trained(NamedTuple):
    """Result of train(): state and checksums after each step, costs, warnings, and number of messages sent by type."""

    states: list
    digests: list
    costs: list
    warnings: list
    sent: Counter


def train(seat, devices, steps, changes, parts=1, stop_at=None, backend="cpu"):
    """Train on synthetic batches with the exchange that the settings `changes` select; return Trained.

    parts    number of batches that this worker combines into one
    stop_at  {rank: first step at which a stop is requested}
    """
    network, trained = make_network(backend), Trained([], [], [], [], Counter())
    on_host = network.computes_on_host
    with open_device(devices[seat.rank], on_host) as device, join(seat, device, network, trained, changes) as exchange:
        for step in range(1, steps + 1):
            inputs = made_batch(step, seat.rank, seat.size, parts)
            cost, error = exchange.step(*inputs, rate=RATE)
            stop = step >= (stop_at or {}).get(seat.rank, steps + 1)
            agreed = exchange.after_step(step, cost, error, RATE, stop, step == steps)
            trained.costs.append(agreed.cost)
            trained.states.append({name: np.array(array) for name, array in network.get_state().items()})
            trained.digests.append({name: zlib.crc32(array) for name, array in trained.states[-1].items()})
            if agreed.stop:
                break
    return trained


def arrays_in_place(seat, steps):
    """Return for each step the names of the arrays stored in the flat buffer after the network's update."""
    network, trained, found = make_network(), Trained([], [], [], [], Counter()), []
    with open_device("cpu") as device, join(seat, device, network, trained, {}) as exchange:
        flat = exchange._groups[0].strategy._mesh.flat.array()
        for step in range(1, steps + 1):
            cost, error = exchange.step(*made_batch(step, seat.rank, seat.size, 1), rate=RATE)
            arrays = {each.name: each.get_value(borrow=True) for each in network.parameters_and_velocities}
            found.append({name for name, array in arrays.items() if np.shares_memory(array, flat)})
            exchange.after_step(step, cost, error, RATE, False, True)
    return found


def join(seat, device, network, trained, changes):
    """Connect this worker with the settings `changes` and return its Synchronizer."""
    if seat.size == 1:
        return SingleWorker(network)
    config = settings("none", "none", **changes)
    comm = watched(seat, trained.sent)
    return bsp.BspRule().connect(config, network, device, comm, Listening(trained.warnings.append))


def make_network(backend="cpu"):
    """Return a network with the same initial weights on every call."""
    model, rule = Smallest(np.random.default_rng(0)), partial(momentum_sgd, momentum=0.9)
    return Network(model, np.zeros((3, 6, 6), "float32"), rule, backend, crop=False)


def made_batch(step, rank, size, parts):
    """Return this rank's images and labels, `parts` batches of BATCH.

    All ranks slice the same size * parts batches, which are generated from the step number.
    """
    rng, n = np.random.default_rng(step), size * parts * BATCH
    images = rng.normal(size=(3, 6, 6, n)).astype("float32")
    labels = rng.integers(0, CLASSES, n, dtype=np.int32)
    mine = slice(rank * parts * BATCH, (rank + 1) * parts * BATCH)
    return np.ascontiguousarray(images[..., mine]), labels[mine]


# ---- exchanges of numbers, without a network


class Numbers:
    """A fake network: its variables hold numbers generated from the step and the rank."""

    computes_on_host, frozen_parameters, trainable_parameters = True, (), ()

    def __init__(self):
        self.parameters_and_velocities = [
            pytensor.shared(np.zeros(shape, "float32"), name=name) for name, shape in SHAPES.items()
        ]

    def set(self, step, rank):
        for variable, value in zip(self.parameters_and_velocities, numbers(step, rank), strict=True):
            variable.set_value(value, borrow=True)

    def values(self):
        return [np.array(variable.get_value()) for variable in self.parameters_and_velocities]


def numbers(step, rank):
    rng = np.random.default_rng((step, rank))
    return [np.array(rng.normal(size=shape), "float32") for shape in SHAPES.values()]


def mean_of(step, size):
    """Return the bit-exact mean over the numbers of all ranks at a step."""
    total, *rest = (numbers(step, rank) for rank in range(size))
    for each in rest:
        total = [one + other for one, other in zip(total, each, strict=True)]
    return [one / np.float32(size) for one in total]


def exchange_numbers(seat, devices, steps, kind=None, slow=None, lame=None, skip=None, changes=None):
    """Exchange `steps` times and check every mean; return (warnings, messages sent by type).

    kind  name of the strategy, PairwiseAverage or ShardedAverage; None: the choice of connect()
    slow  (rank, verb): the device of this worker delays this operation
    lame  (rank, verb): the device of this worker cannot perform this operation
    skip  {rank: a step that this rank omits}
    """
    network, warnings, sent = Numbers(), [], Counter()
    strategies = {name: getattr(peer, kind or name) for name in ("PairwiseAverage", "ShardedAverage")}
    with mock.patch.multiple(peer, **strategies), open_device(devices[seat.rank]) as device:
        if slow and seat.rank == slow[0]:
            dawdle(device, slow[1])
        if lame and seat.rank == lame[0]:
            refuse(device, lame[1])
        config = settings("none", "none", **(changes or {}))
        comm = watched(seat, sent)
        with bsp.BspRule().connect(config, network, device, comm, Listening(warnings.append)) as exchange:
            for step in range(1, steps + 1):
                if step == (skip or {}).get(seat.rank):
                    continue
                network.set(step, seat.rank)
                exchange.after_step(step, 0.0, 0.0, RATE, False, False)
                for found, expected in zip(network.values(), mean_of(step, seat.size), strict=True):
                    np.testing.assert_array_equal(found, expected, f"step {step}, worker {seat.rank}")
    return warnings, sent


def dawdle(device, verb):
    """Make an operation of the device start late."""
    prompt = getattr(device, verb)

    def late(*arguments, **named):
        time.sleep(0.02)
        return prompt(*arguments, **named)

    setattr(device, verb, late)


def refuse(device, verb):
    """Make the memory of other workers unreachable for the device: can_reach reports it, or open raises."""
    sentence = f"this device cannot {verb}"
    error = DeviceError(sentence) if verb == "open" else None
    setattr(device, verb, mock.Mock(return_value=sentence, side_effect=error))


def sum_up(seat, values, stops):
    """Call exchange.total() twice."""
    with open_device("cpu") as device:
        config = settings("none", "none")
        with bsp.BspRule().connect(config, Numbers(), device, watched(seat, Counter()), Listening()) as exchange:
            first = exchange.total(values[seat.rank], False)
            return *first, *exchange.total(np.ones(2), stops[seat.rank])


def greet(seat, changes, steps, weight):
    """Call connect() with settings, step counts and weights that may differ between workers."""
    network = Numbers()
    network.set(0, weight[seat.rank])
    with open_device("cpu") as device:
        config = settings("none", "none", **changes[seat.rank])
        bsp.BspRule().connect(config, network, device, watched(seat, Counter()), Listening(), steps[seat.rank]).close()
        return "done"


def close_in_order(seat, folder):
    """Close an exchange; return the workers that still had this worker's buffer open when it was freed."""
    with open_device("cpu") as device:
        comm = watched(seat, Counter())
        exchange = bsp.BspRule().connect(settings("none", "none"), Numbers(), device, comm, Listening())
        late, mesh = [], exchange._groups[0].strategy._mesh
        own = mesh.flat.buffer
        for other, buffer in mesh.others.items():
            mark, let_go = folder / f"{seat.rank} let go of {other}", buffer.close
            buffer.close = lambda mark=mark, let_go=let_go: (time.sleep(0.1), mark.touch(), let_go())
        free, marks = own.close, [folder / f"{other} let go of {seat.rank}" for other in seat.pipes]
        own.close = lambda: (late.extend(mark.name for mark in marks if not mark.exists()), free())
        exchange.close()
        return late


def die(seat, message):
    """Run two exchanges and a sum; worker 1 is killed instead of sending its message number `message`."""
    left = [message]
    pipes = {other: Mortal(pipe, left) for other, pipe in seat.pipes.items()} if seat.rank == 1 else seat.pipes
    network = Numbers()
    with open_device("cpu") as device:
        comm = PipeCommunicator(seat.rank, pipes)
        exchange = bsp.BspRule().connect(settings("none", "none"), network, device, comm, Listening())
        for step in (1, 2):
            network.set(step, seat.rank)
            exchange.after_step(step, 0.0, 0.0, RATE, False, False)
        exchange.total([1.0], False)
        exchange.close()
        return "done"
