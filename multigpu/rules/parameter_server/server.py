"""The parameter server: serves requests of clients in the order of their arrival.

Clients do not wait for each other. See multigpu.rules.parameter_server.protocol for the messages and
multigpu.rules.parameter_server.client for the clients.

The server counts the steps of the clients. When their average reaches an epoch, it validates on a copy of the center
variable and serves requests between two batches. An exchange therefore waits for at most one validation batch, or for
a checkpoint to be written. If any rank is requested to stop, each client receives the stop with its next Grant.

With an elastic rule (multigpu.rules.Rule.elastic), training does not wait for late clients. If only one client is
requested to stop, only that client leaves. A client that JobMonitor drops is removed, even during an exchange: the
pieces of its last push that have arrived remain in the center variable. Epochs are counted in average steps of the
clients that are present or have finished.

A checkpoint contains the center variable, and zeros as velocities. The velocities of the clients belong to their own
weights, and in a resumed run all clients start at the center variable. They regain their velocity after
1 / (1 - momentum) steps.

Source: Zhang et al. 2015, algorithm 1; Ma et al. 2016, section 3.1; Paine et al. 2013, section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from alexnet.config import Config
from alexnet.data.dataset import Request as BatchRequest
from alexnet.training.base import Batches, Recorder, Synchronizer
from alexnet.training.loop import Position, Run, end_epoch, save, steps_of_epoch
from alexnet.training.timing import Lap
from alexnet.training.update_settings import UpdateSettings, has_linear_rule
from multigpu.communicator import PeerDied, WorkerInfo, check_consistency, verify_consistency, worker_info_of
from multigpu.device.host import HostDevice
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.base import Rule
from multigpu.rules.groups import shapes_of, weights_and_velocities
from multigpu.rules.parameter_server.client import Client
from multigpu.rules.parameter_server.protocol import (
    ORDER,
    SERVER,
    CenterPolicy,
    Fetch,
    Grant,
    Join,
    Joined,
    Leave,
    LeaveAck,
    Push,
    Request,
    message_decoder,
    stage,
    unpack_records,
)

if TYPE_CHECKING:
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.mpi.channel import Channel  # importing it initialises MPI
    from multigpu.mpi.communicator import MpiCommunicator

BEFORE = (-1, 0)                                 # stage of a client before its first message


def connect(
    rule: Rule, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int,
    policy: Callable[[FlatBuffer, Channel], CenterPolicy], client: Callable[..., Client], client_note: Any = None,
    server_note: Any = None,
) -> Synchronizer:
    """Return a Server on rank 0 and a Client on other ranks; see multigpu.rules.base.Rule.connect. Collective.

    Args:
        policy: returns the CenterPolicy, from the buffer of the center variable.
        client: returns the client, from the arguments of Client.
        client_note, server_note: see message_decoder().
    """
    from multigpu.mpi.channel import Channel  # importing it initialises MPI

    if not rule.elastic:
        verify_consistency(config, network, device, comm, step)
    info = worker_info_of(config, network, device, step) if rule.elastic else None
    weights, velocities = weights_and_velocities(network)
    channel = Channel(cast("MpiCommunicator", comm), message_decoder(client_note, server_note))
    host = HostDevice(device.on_host)
    shapes = shapes_of(weights)
    if comm.rank != SERVER:
        this_client = client(network, weights, FlatBuffer(host, shapes), channel, recorder)
        this_client.info = info
        return this_client
    for velocity in velocities:                  # velocities of a checkpoint are for the clients only
        velocity.set_value(np.zeros_like(velocity.get_value(borrow=True)), borrow=True)
    if step and not has_linear_rule(config):
        recorder.warn(
            f"the accumulators of update={config.section(UpdateSettings).rule} belong to the clients and are in no "
            f"checkpoint of rule={config.rule}: they start at 0 again, so the first steps are as large as those of a "
            "new run"
        )
    center = FlatBuffer(host, shapes)
    return Server(network, weights, FlatBuffer(host, shapes), policy(center, channel), channel, recorder, info)


class Clients:
    """Which clients are present, finished or dropped, and how many steps each has done since the start."""

    def __init__(self, present: Iterable[int], awaited: Iterable[int]):
        self.stages = dict.fromkeys(present, BEFORE)             # of each present client's last message
        self.awaited = set(awaited)                              # not yet joined
        self.dropped: set[int] = set()
        self.last_steps: dict[int, int] = {}                     # of the finished clients
        self.steps = dict.fromkeys(self.stages, 0)               # of the present and the finished clients

    def __len__(self) -> int:
        """Return the number of clients that are present or awaited."""
        return len(self.stages) + len(self.awaited)

    def admit(self, client: int, steps: int) -> None:
        """Add a client that starts after `steps` steps."""
        self.awaited.discard(client)
        self.stages[client] = BEFORE
        self.steps[client] = steps

    def remove(self, client: int) -> None:
        """Remove a client that leaves before the end; its steps no longer count."""
        self.awaited.discard(client)
        self.stages.pop(client, None)
        self.steps.pop(client, None)

    def finish(self, client: int, step: int) -> None:
        """Note that a client has done its last step."""
        self.last_steps[client] = step
        del self.stages[client]

    def mean_steps(self) -> int:
        """Return the number of steps of a client on average, rounded down."""
        return sum(self.steps.values()) // len(self.steps) if self.steps else 0


class Server(Synchronizer):
    """The Synchronizer of rank 0: holds the center variable and does not train.

    Args:
        variables: shared variables of the network whose values the center variable represents.
        shown: a buffer for them: the copy that is validated and saved.
        policy: the policy of the rule, with the center variable.
        info: WorkerInfo of this rank if the rule is elastic; None: all clients are present from the start.
    """

    def __init__(
        self, network: Network, variables: list[SharedVariable], shown: FlatBuffer, policy: CenterPolicy,
        channel: Channel, recorder: Recorder, info: WorkerInfo | None = None,
    ):
        self._network = network
        self._variables = variables
        self._shown = shown
        self._policy = policy
        self._center = policy.center
        self._channel = channel
        self._recorder = recorder
        self._info = info
        ranks = range(1, channel.size)
        self._clients = Clients(present=() if info else ranks, awaited=ranks if info else ())
        self._laps: dict[int, list[Lap]] = {}    # by iteration, until all clients have reported it
        self._stop_requested: Callable[[], bool] = lambda: False
        self._stop = False
        self._center_changed = False             # whether anything has been pushed
        self._position = Position()
        self._first_iteration = 0                # iteration at which this run starts
        self._mean = 0                           # iteration that the clients have reached on average; never decreases
        self._steps_of_epoch = 1
        self._first_random_step = int(network.step.get_value())
        self._center.pack(variables)

    def run(self, run: Run, position: Position) -> Position:
        """Serve until all clients have left; validate and save when their average position requires it."""
        self._stop_requested = run.stop_requested
        self._first_iteration = position.iteration
        saved = None
        run = run._replace(batches=PolledBatches(run.batches, self.serve), stop_requested=self._stopping)
        steps = self._steps_of_epoch = steps_of_epoch(run)
        while True:
            before = position
            position = self._position = self._reached(position, steps)
            if position.batch == steps and not self._stopping():
                position, stop = end_epoch(run, position)
                self._policy.report(len(self._clients.steps), self._recorder)
                if not stop and position.epoch % run.config.snapshot_freq == 0:
                    saved = self._save(run, position)
            elif passed(run.config.snapshot_iterations, before, position):
                saved = self._save(run, position)
            elif not self._clients:
                break
            else:
                self._channel.until(self.serve)
        if saved != position:
            self._save(run, position)
        self._policy.report(len(self._clients.steps), self._recorder)
        if self._clients.dropped and not self._clients.last_steps:
            raise PeerDied(f"no client is left; all is saved after {position.iteration} iterations")
        return position

    def _reached(self, position: Position, steps: int) -> Position:
        """Return the Position that the clients have reached on average, limited to the end of the epoch."""
        ahead = max(0, min(self._mean_iteration() - position.iteration, steps - position.batch))
        return position._replace(batch=position.batch + ahead, iteration=position.iteration + ahead)

    def _mean_iteration(self) -> int:
        """Return the iteration that the clients have reached on average; never decreases."""
        if self._clients.steps:
            self._mean = max(self._mean, self._first_iteration + self._clients.mean_steps())
        return self._mean

    def _save(self, run: Run, position: Position) -> Position:
        done = position.iteration - self._first_iteration
        self._network.step.set_value(np.int64(self._first_random_step + done))
        save(run, position)
        return position

    def _stopping(self) -> bool:
        """Return whether any rank has been requested to stop."""
        self._stop = self._stop or bool(self._stop_requested())
        return self._stop

    def serve(self) -> bool:
        """Serve pending messages, at most as many as there are clients; returns whether there were any."""
        for n_served in range(len(self._clients)):
            message = self._channel.take()
            if message is None:
                return self._remove_dropped() or n_served > 0
            if message.sender not in self._clients.dropped:
                self._answer(message)
        return True

    def _remove_dropped(self) -> bool:
        """Remove dropped clients that have no pending messages; returns whether there were any."""
        if not self._info:
            return False
        clients = self._clients
        dropped = self._channel.dropped_ranks & (clients.stages.keys() | clients.awaited)
        for client in dropped:
            self._remove(client)
        clients.dropped |= dropped
        return bool(dropped)

    def _remove(self, client: int) -> None:
        self._mean_iteration()                   # includes this client for the last time
        self._clients.remove(client)

    def _join(self, join: Join) -> None:
        """Start a client at the current position of the job."""
        assert self._info is not None            # clients join only under an elastic rule
        check_consistency(join.sender, join.info, self._info)
        ahead = max(0, self._mean_iteration() - self._position.iteration)        # steps done during validation
        epochs, batch = divmod(self._position.batch + ahead, self._steps_of_epoch)
        iteration = self._position.iteration + ahead
        self._clients.admit(join.sender, iteration - self._first_iteration)
        if self._center_changed:
            self._recorder.log(f"rank {join.sender} has joined at iteration {iteration}")
        position = self._position._replace(epoch=self._position.epoch + epochs, batch=batch, iteration=iteration)
        self._channel.send(Joined(join.step, SERVER, position, self._center_changed, self._stopping()), join.sender)

    def _answer(self, message: Any) -> None:
        """Process a message, which any type of message may be until it has been checked."""
        client = message.sender
        if client in self._clients.awaited:
            if type(message) is Join:
                return self._join(message)
            self._clients.admit(client, 0)       # without Join, it starts at the job's first position
        before = self._clients.stages.get(client)
        if before is None or type(message) not in ORDER or (now := stage(message)) <= before:
            after = "" if before is None else f", after step {before[0]}"
            self._channel.refuse(message, f"Push or Leave of a client that is here{after}")
        self._clients.stages[client] = now
        self._record(message)
        if type(message) is Leave:
            self._leave(message)
        elif not self._exchange(message, client):
            return
        self._policy.completed(message, self._recorder)

    def _exchange(self, message: Push | Fetch, client: int) -> bool:
        """Perform a Push or a Fetch; returns False if the client was dropped during the transfer."""
        self._center_changed = self._center_changed or type(message) is Push
        update, there, back, note = self._policy.answer(message)
        self._channel.send(Grant(message.step, SERVER, self._stopping(), note), client)
        try:
            with self._channel.waiting():
                self._channel.serve_exchange(client, self._center.array().size, update, there, back)
        except PeerDied:
            return False
        return True

    def _leave(self, leave: Leave) -> None:
        """Handle a client that leaves, after its last step or on request.

        If only this client was requested to stop, the other clients continue.
        """
        client = leave.sender
        if leave.stop and self._info and not self._stopping():
            self._remove(client)
            self._recorder.log(
                f"rank {client} was asked to stop, and has left after step {leave.step}; "
                f"{len(self._clients)} clients are left"
            )
            self._channel.send(LeaveAck(leave.step, SERVER, alone=True), client)
            return
        self._clients.finish(client, leave.step)
        self._stop = self._stop or leave.stop

    def _record(self, message: Request) -> None:
        """Record the steps of a client, and a timing window once all clients have reported it."""
        records = unpack_records(message)
        self._clients.steps[message.sender] += len(records)
        for record in records:
            self._recorder.train_iteration(**record, worker=message.sender - 1)
        for lap in message.laps:
            laps = self._laps.setdefault(lap.iteration, [])
            laps.append(lap)
            if len(laps) == len(self._clients.steps):
                self._recorder.laps(self._laps.pop(lap.iteration))

    @contextmanager
    def consensus(self, stop: bool = False) -> Iterator[bool]:
        """See Synchronizer; the network holds a copy of the center variable as it is on entry."""
        np.copyto(self._shown.array(), self._center.array())
        self._shown.unpack(self._variables)
        yield False

    def step(self, *inputs: np.ndarray, rate: np.float32) -> NoReturn:
        raise NotImplementedError("a server takes no steps: its part is run()")

    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> NoReturn:
        raise NotImplementedError("a server takes no steps: its part is run()")

    def total(self, values: np.ndarray, stop: bool) -> tuple[np.ndarray, bool]:
        return np.array(values, dtype=np.float64), bool(stop)

    def close(self) -> None:
        for client, last_step in self._clients.last_steps.items():
            self._channel.send(LeaveAck(last_step, SERVER), client)
        self._channel.close()
        self._center.close()
        self._shown.close()


class PolledBatches(Batches):
    """Wraps Batches; calls a function before each batch is returned."""

    def __init__(self, batches: Batches, meanwhile: Callable[[], object]):
        self._batches = batches
        self._meanwhile = meanwhile

    def read(self, requests: Iterable[BatchRequest]) -> Iterator[np.ndarray]:
        for images in self._batches.read(requests):
            self._meanwhile()
            yield images


def passed(every: int | None, before: Position, after: Position) -> bool:
    """Return whether training passed a multiple of `every` iterations between two Positions; None: never."""
    return every is not None and after.iteration // every > before.iteration // every
