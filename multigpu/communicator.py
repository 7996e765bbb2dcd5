"""Messages between the workers of one job, and the pipes that carry them.

    WorkerInfo(step, device, pid, settings, weights)  identifies a worker; settings, weights and steps done must match
    DeviceInfo(step, device)               device on which the sender allocates its flat buffer
    Reachability(step, sentence)           whether the sender can access the memory of all peers, or why not
    BufferHandle(step, handle)             handle of the sender's flat buffer
    Ready(step, cost, error, stop)         the sender's arrays of this step are in its buffer and may be read
    SyncRemaining(step)                    so are the arrays that are exchanged only because training stops
    Done(step)                             the sender has read the peers' arrays and written its own; peers may
                                           change theirs
    TimingReport(step, lap)                time per activity of the sender
    Totals(step, values, stop)             the sender's terms of a sum over all workers
    Closed(step)                           the sender has closed the peer's buffer, which may be freed

A worker that sends a message to all peers and receives one from each has passed a barrier.  Each message carries its
step, so that desynchronised workers raise an error instead of averaging mismatched steps.  The death of a peer is
seen as an EOF.

Source: Ding et al. 2014, section 4.3 (context syncing and additional message communications).
"""

import os
from contextlib import nullcontext
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np

from alexnet.config.schema import ConfigError
from multigpu.process import Watch

# settings that may differ between workers
OWN = {"rank", "device", "devices", "threads", "isa", "run_name", "resume_train", "print_freq"}


class WorkerInfo(NamedTuple):
    """First message. step is the number of completed steps, weights is {name: checksum}."""

    step: int
    device: str
    pid: int
    settings: dict
    weights: dict


class DeviceInfo(NamedTuple):
    """The name of the device on which the sender allocates its buffers."""

    step: int
    device: str


class Reachability(NamedTuple):
    """Whether the sender can access the peers' memory: None, or a sentence that gives the reason."""

    step: int
    sentence: str | None


class BufferHandle(NamedTuple):
    """The handle of the sender's flat buffer."""

    step: int
    handle: Any


class Ready(NamedTuple):
    """The arrays of this step are in the sender's buffer; no copy is pending."""

    step: int
    cost: float
    error: float
    stop: bool


class SyncRemaining(NamedTuple):
    """The arrays that this step would not have averaged are in the sender's buffer, because training stops after it."""

    step: int


class Done(NamedTuple):
    """The sender has finished reading and writing its peers' buffers."""

    step: int


class TimingReport(NamedTuple):
    """An alexnet.training.timing.Lap that ended with this step."""

    step: int
    lap: Any


class Totals(NamedTuple):
    """Values to be summed over the workers; step is the index of the sum."""

    step: int
    values: tuple[float, ...]
    stop: bool


class Closed(NamedTuple):
    """The sender has closed its peers' buffers."""

    step: int


class PeerDied(RuntimeError):
    """Another worker has exited; the message names it."""


class DesyncError(RuntimeError):
    """Another worker is at a different step or message; the error message gives the state of both."""


def desync_error(other, message, own, awaited):
    """Return the DesyncError of `own`, which received a message of `other` but expected `awaited` (all three: text)."""
    return DesyncError(
        f"{other} sent {type(message).__name__} of step {message.step}, {own} waits for {awaited}: "
        "the workers are out of step; restart all of them from one checkpoint"
    )


class PipeCommunicator:
    """Connects the workers of one host by a pipe between every two of them.

    Args:
        rank: rank of this worker.
        pipes: {rank: Connection} to each of the other workers, which holds the only other end.
    """

    over_mpi, on_one_host = False, True

    def __init__(self, rank, pipes):
        self.rank, self.size = rank, len(pipes) + 1
        self._pipes = pipes
        self._names = {other: f"worker {other}" for other in pipes}

    def send_all(self, message):
        """Send a message to every peer; raises PeerDied."""
        for other, pipe in self._pipes.items():
            try:
                pipe.send(message)
            except ConnectionError as error:
                raise self._died(other) from error

    def recv_all(self, kind, step):
        """Return {rank: message} with one message from each peer.

        Raises:
            PeerDied: a peer has exited; raised at once, even if other peers have not sent yet.
            DesyncError: a peer sent a message of another type or step.
        """
        heard, waiting = {}, {pipe: other for other, pipe in self._pipes.items()}
        while waiting:
            for pipe in connection.wait(waiting):
                other = waiting.pop(pipe)
                heard[other] = self._receive(other, pipe, kind, step)
        return heard

    def allgather(self, message):
        """Send a message to all peers and return the messages of all ranks, in rank order."""
        self.send_all(message)
        heard = self.recv_all(type(message), message.step) | {self.rank: message}
        return [heard[rank] for rank in range(self.size)]

    def watch(self, on_death):
        """Return a context with close() in which a thread calls on_death(rank) as soon as a peer exits."""
        return Watch(self._pipes, on_death)

    def waiting(self):
        """Return a context for waiting on peers; see multigpu.mpi.communicator. With pipes, a dead peer is an EOF."""
        return nullcontext()

    def progress(self):
        """Do nothing; see multigpu.mpi.communicator."""

    def name(self, other, pid):
        """Add a peer's process id to its name in error messages."""
        self._names[other] = f"worker {other} (pid {pid})"

    def _receive(self, other, pipe, kind, step):
        try:
            message = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died(other) from error
        if isinstance(message, kind) and message.step == step:
            return message
        raise desync_error(self._names[other], message, f"worker {self.rank}", f"{kind.__name__} of step {step}")

    def _died(self, other):
        return PeerDied(f"{self._names[other]} has died; worker {self.rank} cannot continue without it")


def verify_consistency(config, network, device, comm, step):
    """Exchange WorkerInfo with all peers and compare; collective.

    Raises:
        ConfigError: settings or weights differ, see check_consistency.
        DesyncError: the numbers of completed steps differ.
    """
    infos = comm.allgather(worker_info_of(config, network, device, step))
    for rank, info in enumerate(infos):
        comm.name(rank, info.pid)
        check_consistency(rank, info, infos[0])


def worker_info_of(config, network, device, step):
    """Return the WorkerInfo of this worker after `step` steps."""
    settings = {name: value for name, value in config.as_dict().items() if name not in OWN}
    alike = [*network.frozen_parameters, *network.parameters_and_velocities]
    weights = {v.name: checksum(v.get_value(borrow=True)) for v in alike}
    return WorkerInfo(step, device.name, os.getpid(), settings, weights)


def check_consistency(rank, info, first):
    """Raise ConfigError if the settings or weights in a worker's WorkerInfo differ from worker 0's."""
    for name, value in info.settings.items():
        if value != first.settings[name]:
            raise ConfigError(
                f"workers 0 and {rank} differ in {name}: {first.settings[name]} and {value}; give both the same"
            )
    for name, value in info.weights.items():
        if value != first.weights.get(name):
            raise ConfigError(
                f"workers 0 and {rank} begin with different {name}; restart both, or resume both from one checkpoint"
            )


def total(comm, step, values, stop):
    """Sum values over all workers; collective.

    Args:
        step: index of this sum.
        values: this worker's terms.
        stop: whether this worker has to stop.

    Returns:
        (float64 array of the sums, whether any worker has to stop).
    """
    heard = comm.allgather(Totals(step, tuple(map(float, values)), bool(stop)))
    return np.sum([totals.values for totals in heard], axis=0), any(totals.stop for totals in heard)


def checksum(array):
    """Return the sum of a float32 array's bits as 32-bit words, modulo 2**32."""
    return int(np.asarray(array).view(np.uint32).sum(dtype=np.uint32))
