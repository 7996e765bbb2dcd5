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

from contextlib import contextmanager

import numpy as np

from alexnet.training.base import Synchronizer
from alexnet.training.loop import Position, end_epoch, save, steps_of_epoch
from alexnet.training.updates import UpdateSettings, find_update_rule
from multigpu.communicator import PeerDied, check_consistency, verify_consistency, worker_info_of
from multigpu.device.host import HostDevice
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.bsp import shapes_of, weights_and_velocities
from multigpu.rules.parameter_server.protocol import (
    ORDER,
    SERVER,
    Grant,
    Join,
    Joined,
    Leave,
    LeaveAck,
    Push,
    stage,
)

BEFORE = (-1, 0)                                 # stage of a client before its first message


def connect(rule, config, network, device, comm, recorder, step, policy, client):
    """Return a Server on rank 0 and a Client on other ranks; see multigpu.rules.base.Rule.connect. Collective.

    policy  (FlatBuffer of the center variable, Channel) -> CenterPolicy
    client  (arguments of Client) -> Client
    """
    elastic = rule.elastic
    if not elastic:
        verify_consistency(config, network, device, comm, step)
    info = worker_info_of(config, network, device, step) if elastic else None
    weights, velocities = weights_and_velocities(network)
    from multigpu.mpi.channel import Channel  # importing it initialises MPI

    channel = Channel(comm)
    host = HostDevice(device.on_host)
    shapes = shapes_of(weights)
    if comm.rank != SERVER:
        made = client(network, weights, FlatBuffer(host, shapes), channel, recorder)
        made.info = info
        return made
    for velocity in velocities:                  # velocities of a checkpoint are for the clients only
        velocity.set_value(np.zeros_like(velocity.get_value(borrow=True)), borrow=True)
    update = config.section(UpdateSettings).rule
    if step and not find_update_rule(config).linear:
        recorder.warn(
            f"the accumulators of update={update} are the clients' own, and in no checkpoint of "
            f"rule={config.rule}: they begin at 0 again, so the first steps are as large as a training's first"
        )
    policy = policy(FlatBuffer(host, shapes), channel)
    return Server(network, weights, FlatBuffer(host, shapes), policy, channel, recorder, info)


class Server(Synchronizer):
    """The Synchronizer of rank 0: holds the center variable and does not train.

    variables  shared variables of the network whose values the center variable represents
    shown      FlatBuffer for them: the copy that is validated and saved
    policy     CenterPolicy of the rule, with the center variable
    channel       multigpu.rules.channel.Channel
    info      WorkerInfo of this rank if the rule is elastic; None: all clients are present from the start
    """

    def __init__(self, network, variables, shown, policy, channel, recorder, info=None):
        self._network, self._variables, self._center, self._shown = network, variables, policy.center, shown
        self._policy, self._recorder, self._channel = policy, recorder, channel
        clients = range(1, channel.size)
        self._here = dict.fromkeys(() if info else clients, BEFORE)     # stage of each client's last message
        self._awaited, self._dropped = set(clients if info else ()), set()
        # _ends: last step of each finished client; _steps: steps of each present or finished client since the start
        self._ends, self._steps = {}, dict.fromkeys(self._here, 0)
        self._info, self._position, self._laps = info, Position(), {}
        self._moved, self._far, self._length = False, 0, 1       # anything pushed; maximum of _mean; steps per epoch
        self._asked, self._begun, self._stop = lambda: False, 0, False
        self._step = int(network.step.get_value())
        self._center.pack(variables)

    def run(self, run, position):
        """Serve until all clients have left; validate and save when their average position requires it."""
        self._asked, self._begun, saved = run.stop_requested, position.iteration, None
        run = run._replace(batches=PolledBatches(run.batches, self.serve), stop_requested=self._stopping)
        steps = self._length = steps_of_epoch(run)
        while True:
            before, position = position, self._reached(position, steps)
            self._position = position
            if position.batch == steps and not self._stopping():
                position, stop = end_epoch(run, position)
                self._policy.report(len(self._steps), self._recorder)
                if not stop and position.epoch % run.config.snapshot_freq == 0:
                    saved = self._save(run, position)
            elif passed(run.config.snapshot_iterations, before, position):
                saved = self._save(run, position)
            elif not self._here and not self._awaited:
                break
            else:
                self._channel.until(self.serve)
        if saved != position:
            self._save(run, position)
        self._policy.report(len(self._steps), self._recorder)
        if self._dropped and not self._ends:
            raise PeerDied(f"no client is left; all is saved after {position.iteration} iterations")
        return position

    def _reached(self, position, steps):
        """Return the Position that the clients have reached on average, limited to the end of the epoch."""
        ahead = max(0, min(self._mean() - position.iteration, steps - position.batch))
        return position._replace(batch=position.batch + ahead, iteration=position.iteration + ahead)

    def _mean(self):
        """Return the iteration that the clients have reached on average; never decreases."""
        if self._steps:
            self._far = max(self._far, self._begun + sum(self._steps.values()) // len(self._steps))
        return self._far

    def _save(self, run, position):
        self._network.step.set_value(np.int64(self._step + position.iteration - self._begun))
        save(run, position)
        return position

    def _stopping(self):
        """Return whether any rank has been requested to stop."""
        self._stop = self._stop or bool(self._asked())
        return self._stop

    def serve(self):
        """Serve pending messages, at most as many as there are clients; returns whether there were any."""
        for served in range(len(self._here) + len(self._awaited)):
            message = self._channel.take()
            if message is None:
                return self._strike_off() or served > 0
            if message.sender not in self._dropped:
                self._answer(message)
        return True

    def _strike_off(self):
        """Remove dropped clients that have no pending messages; returns whether there were any."""
        dropped = self._channel.dropped_ranks & (self._here.keys() | self._awaited) if self._info else set()
        for client in dropped:
            self._let_go(client)
        self._dropped |= dropped
        return bool(dropped)

    def _let_go(self, client):
        self._mean()                             # includes this client for the last time
        self._awaited.discard(client)
        self._here.pop(client, None)
        self._steps.pop(client, None)

    def _welcome(self, join):
        """Start a client at the current position of the job."""
        check_consistency(join.sender, join.info, self._info)
        ahead = max(0, self._mean() - self._position.iteration)          # steps done during validation
        epochs, batch = divmod(self._position.batch + ahead, self._length)
        iteration, epoch = self._position.iteration + ahead, self._position.epoch + epochs
        self._admit(join.sender, iteration)
        if self._moved:
            self._recorder.log(f"rank {join.sender} has joined at iteration {iteration}")
        position = self._position._replace(epoch=epoch, batch=batch, iteration=iteration)
        self._channel.send(Joined(join.step, SERVER, position, self._moved, self._stopping()), join.sender)

    def _admit(self, client, iteration):
        self._awaited.discard(client)
        self._here[client], self._steps[client] = BEFORE, iteration - self._begun

    def _answer(self, message):
        if type(message) is Join and message.sender in self._awaited:
            return self._welcome(message)
        if message.sender in self._awaited:      # without Join, it starts at the job's first position
            self._admit(message.sender, self._begun)
        client, before = message.sender, self._here.get(message.sender)
        if before is None or type(message) not in ORDER or (now := stage(message)) <= before:
            after = "" if before is None else f", after step {before[0]}"
            self._channel.refuse(message, f"Push or Leave of a client that is here{after}")
        self._here[client] = now
        self._record(message)
        if type(message) is Leave:
            self._part(message)
        elif not self._exchange(message, client):
            return
        self._policy.served(message, self._recorder)

    def _exchange(self, message, client):
        """Perform a Push or a Fetch; returns False if the client was dropped during the transfer."""
        self._moved = self._moved or type(message) is Push
        update, there, back, note = self._policy.answer(message)
        self._channel.send(Grant(message.step, SERVER, self._stopping(), note), client)
        try:
            with self._channel.waiting():
                self._channel.take_over(client, self._center.array().size, update, there, back)
        except PeerDied:
            return False
        return True

    def _part(self, leave):
        """Handle a client that leaves, after its last step or on request.

        If only this client was requested to stop, the other clients continue.
        """
        client = leave.sender
        if leave.stop and self._info and not self._stopping():
            self._let_go(client)
            self._recorder.log(f"rank {client} was asked to stop, and has left after step {leave.step}; "
                               f"{len(self._here) + len(self._awaited)} clients are left")
            return self._channel.send(LeaveAck(leave.step, SERVER, alone=True), client)
        self._ends[client] = leave.step
        del self._here[client]
        self._stop = self._stop or leave.stop

    def _record(self, message):
        """Record the steps of a client, and a timing window once all clients have reported it."""
        self._steps[message.sender] += len(message.records)
        for record in message.records:
            self._recorder.train_iteration(**record, worker=message.sender - 1)
        for lap in message.laps:
            laps = self._laps.setdefault(lap.iteration, [])
            laps.append(lap)
            if len(laps) == len(self._steps):
                self._recorder.laps(self._laps.pop(lap.iteration))

    @contextmanager
    def consensus(self, stop=False):
        """See Synchronizer; the network holds a copy of the center variable as it is on entry."""
        np.copyto(self._shown.array(), self._center.array())
        self._shown.unpack(self._variables)
        yield False

    def step(self, *inputs, rate):
        raise NotImplementedError("a server takes no steps: its part is run()")

    def after_step(self, step, cost, error, rate, stop, last):
        raise NotImplementedError("a server takes no steps: its part is run()")

    def total(self, values, stop):
        return np.array(values, dtype=np.float64), bool(stop)

    def close(self):
        for client, end in self._ends.items():
            self._channel.send(LeaveAck(end, SERVER), client)
        self._channel.close()
        self._center.close()
        self._shown.close()


class PolledBatches:
    """Wraps the batches of multigpu.loader; calls a function before each batch is returned."""

    def __init__(self, batches, meanwhile):
        self._batches, self._meanwhile = batches, meanwhile

    def read(self, requests):
        for images in self._batches.read(requests):
            self._meanwhile()
            yield images


def passed(every, before, after):
    """Return whether training passed a multiple of `every` iterations between two Positions; None: never."""
    return every is not None and after.iteration // every > before.iteration // every
