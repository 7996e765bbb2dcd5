"""A server and its clients: each client comes when it likes, first come first served; nobody waits for another client.

    client                                   server
    Push, or Fetch (step, records, laps, note)  takes what has been recorded since the client last came
                               <-----------  Turn(step, stop, note)
    array, piece by piece      <---------->  the Keeper changes piece and centre; the piece goes back
    Leave(step, ..., note, stop)  -------->  the client has taken its last step; stop: because it was asked to
                               <-----------  Farewell(step): all have left, and the centre is saved

What an exchange does to a client's array and to the centre, the server's own, is the rule's: its Keeper, and the note
that its clients send along.  A piece fits the last-level cache, and the server has no second array of a client's size.

The server counts the clients' steps.  When all of them together make an epoch it validates on a copy of the centre, and
serves between two batches; so an exchange waits for a batch of validation at most, or for a checkpoint to be written.
A stop that any rank is asked for reaches each client with its next Turn.

A checkpoint holds the centre, and velocities of 0.  The clients' own velocities belong to where the clients are, and in
a run that is resumed all of them begin at the centre: they are up to speed again after 1 / (1 - momentum) steps.

Source: Zhang et al. 2015, algorithm 1; Ma et al. 2016, section 3.1; Paine et al. 2013, section 2.3.
"""

import pkgutil
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from alexnet.training import end_epoch, save, steps_of_epoch, train
from multigpu.device.host import HostDevice
from multigpu.exchange.flat import Flat
from multigpu.partners import greet
from multigpu.rules import POST, Agreed, Exchange
from multigpu.rules.bsp import shapes_of, weights_and_velocities

SERVER = 0                                       # its rank


class Push(NamedTuple):
    """Client to server: my array is to be exchanged after this step; what I have recorded since my last message.

    note  the rule's own
    """

    step: int
    sender: int
    records: list
    laps: list
    note: Any = None


class Fetch(NamedTuple):
    """Client to server: I want the centre, and send nothing now; else as Push."""

    step: int
    sender: int
    records: list
    laps: list
    note: Any = None


class Turn(NamedTuple):
    """Server to client: send your array now; and whether all stop."""

    step: int
    sender: int
    stop: bool
    note: Any = None


class Leave(NamedTuple):
    """Client to server: this step was my last."""

    step: int
    sender: int
    records: list
    laps: list
    stop: bool
    note: Any = None


class Farewell(NamedTuple):
    """Server to client: all is done and saved."""

    step: int
    sender: int


ORDER = (Fetch, Push, Leave)                     # what a client may say after a step


class Answer(NamedTuple):
    """What the server does with a client that has come.

    update  (piece of the client's array, slice: which piece) -> None, changes the piece, and the centre there
    there   whether the client's array comes                 back  whether it goes back
    note    to the client
    """

    update: Callable
    there: bool = True
    back: bool = True
    note: Any = None


class Keeper:
    """Who keeps the centre, by the equations of a rule; the server hands it who has come.

    centre  multigpu.exchange.flat.Flat
    """

    def __init__(self, centre):
        self.centre = centre

    def answer(self, push):
        """The Answer to a Push, or a Fetch."""
        raise NotImplementedError

    def served(self, message, recorder):
        """What this message asked for is done; recorder: where the rule records what it wants to."""

    def report(self, clients, recorder):
        """An epoch has ended, or all; so many clients there were."""


def connect(config, network, device, partners, recorder, step, keeper, client):
    """The Server at rank 0, a Client at the others, as multigpu.rules says; all of them call it.

    keeper  (the centre's Flat, the Post) -> Keeper         client  (Client's arguments) -> Client
    """
    greet(config, network, device, partners, step)
    weights, velocities = weights_and_velocities(network)
    post, host, shapes = pkgutil.resolve_name(POST)(partners), HostDevice(device.on_host), shapes_of(weights)
    if partners.rank != SERVER:
        return client(network, weights, Flat(host, shapes), post, recorder)
    for velocity in velocities:                  # those of a checkpoint are the clients' to go on with
        velocity.set_value(np.zeros_like(velocity.get_value(borrow=True)), borrow=True)
    return Server(network, weights, Flat(host, shapes), keeper(Flat(host, shapes), post), post, recorder)


class Client(Exchange):
    """What the training loop of a worker is handed; a rule says what contact() does.

    variables  the shared variables that are exchanged      flat  multigpu.exchange.flat.Flat of theirs, on the host
    post       multigpu.rules.post.Post
    """

    def __init__(self, network, variables, flat, post, recorder):
        self._network, self._variables, self._flat = network, variables, flat
        self._post, self._recorder = post, recorder
        self._records, self._laps, self._stop, self._end = [], [], False, 0
        recorder.keep = self._records.append
        flat.pack(variables)
        flat.unpack(variables)                   # on the host they lie there from now on

    def run(self, run, position):
        """Train without validation, which is the server's, and leave."""
        position = train(run._replace(config=run.config.model_copy(update={"validation": False})), position)
        self.leave(position.iteration)
        return position

    def leave(self, step):
        """Say that this step was the last."""
        self._end = step
        self._post.send(Leave(step, self._post.rank, *self._told(), self._stop, self.note()), SERVER)

    def note(self):
        """What the rule's Keeper is to know of this client."""
        return None

    def step(self, *inputs, rate):
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        self._stop = self._stop or bool(stop)
        if not self._stop:
            stop = self.contact(step)
        return Agreed(float(cost), float(error), bool(stop))

    @abstractmethod
    def contact(self, step):
        """Exchange with the server if it is due after this step; returns whether all stop."""

    def ask(self, kind, step):
        """Come to the server with a Push or a Fetch, the array packed; returns the Turn, once it comes."""
        with self._recorder.time("comm"):
            self._flat.pack(self._variables)
        with self._recorder.time("sync"):
            self._post.send(kind(step, self._post.rank, *self._told(), self.note()), SERVER)
            return self._post.hear(Turn, step, SERVER)

    def exchanging(self):
        """The context in which the array goes and comes."""
        stack = ExitStack()
        stack.enter_context(self._recorder.time("comm"))
        stack.enter_context(self._post.waiting())
        return stack

    def _told(self):
        """What has been recorded since the last time, and the laps."""
        told = list(self._records), list(self._laps)
        self._records.clear()
        self._laps.clear()
        return told

    def gather(self, lap):
        self._laps.append(lap)
        return []

    def total(self, values, stop):
        self._stop = self._stop or bool(stop)
        return np.array(values, dtype=np.float64), self._stop

    def close(self):
        self._post.hear(Farewell, self._end, SERVER)
        self._flat.close()


class Server(Exchange):
    """What rank 0 is handed: it trains nothing, and holds the centre.

    variables  of the network, which the centre stands for      shown  Flat of theirs, what is validated and saved
    keeper     the rule's Keeper, with the centre               post   multigpu.rules.post.Post
    """

    def __init__(self, network, variables, shown, keeper, post, recorder):
        self._network, self._variables, self._centre, self._shown = network, variables, keeper.centre, shown
        self._keeper, self._recorder, self._post = keeper, recorder, post
        self._here = dict.fromkeys(range(1, post.size), (-1, 0))     # clients: the stage that each came with last
        self._workers, self._ends = post.size - 1, {}            # ends: the last steps of those who have left
        self._taken, self._laps = 0, {}
        self._asked, self._begun, self._stop = lambda: False, 0, False
        self._step = int(network.step.get_value())
        self._centre.pack(variables)

    def run(self, run, position):
        """Serve until all clients have left; validate and save when their steps together make an epoch."""
        self._asked, self._begun, saved = run.stop_requested, position.iteration, None
        run = run._replace(batches=Between(run.batches, self.serve), stop_requested=self._stopping)
        steps = steps_of_epoch(run)
        while True:
            before, position = position, self._reached(position, steps)
            if position.batch == steps and not self._stopping():
                position, stop = end_epoch(run, position)
                self._keeper.report(self._workers, self._recorder)
                if not stop and position.epoch % run.config.snapshot_freq == 0:
                    saved = self._save(run, position)
            elif passed(run.config.snapshot_iterations, before, position):
                saved = self._save(run, position)
            elif not self._here:
                break
            else:
                self._post.until(self.serve)
        if saved != position:
            self._save(run, position)
        self._keeper.report(self._workers, self._recorder)
        return position

    def _reached(self, position, steps):
        """The Position that the clients' steps together make, at most the end of the epoch."""
        ahead = self._begun + self._taken // self._workers - position.iteration
        ahead = max(0, min(ahead, steps - position.batch))
        return position._replace(batch=position.batch + ahead, iteration=position.iteration + ahead)

    def _save(self, run, position):
        self._network.step.set_value(np.int64(self._step + position.iteration - self._begun))
        save(run, position)
        return position

    def _stopping(self):
        """Whether any rank has been asked to stop, by now."""
        self._stop = self._stop or bool(self._asked())
        return self._stop

    def serve(self):
        """Serve those who have come by now, each once at most; returns whether anybody has."""
        for served in range(len(self._here)):
            message = self._post.take()
            if message is None:
                return served > 0
            self._answer(message)
        return True

    def _answer(self, message):
        client, before = message.sender, self._here.get(message.sender)
        if before is None or type(message) not in ORDER or (now := stage(message)) <= before:
            after = "" if before is None else f", after step {before[0]}"
            self._post.refuse(message, f"Push or Leave of a client that is here{after}")
        self._here[client] = now
        self._record(message)
        if type(message) is not Leave:
            update, there, back, note = self._keeper.answer(message)
            self._post.send(Turn(message.step, SERVER, self._stopping(), note), client)
            with self._post.waiting():
                self._post.take_over(client, self._centre.array().size, update, there, back)
        else:
            self._ends[client] = message.step
            del self._here[client]
            self._stop = self._stop or message.stop
        self._keeper.served(message, self._recorder)

    def _record(self, message):
        """Record the steps of a client, and a lap once it is known of all."""
        self._taken += len(message.records)
        for record in message.records:
            self._recorder.train_iteration(**record, worker=message.sender - 1)
        for lap in message.laps:
            laps = self._laps.setdefault(lap.iteration, [])
            laps.append(lap)
            if len(laps) == self._workers:
                self._recorder.laps(self._laps.pop(lap.iteration))

    @contextmanager
    def consensus(self, stop=False):
        """See Exchange; the network holds a copy of the centre as it is on entry."""
        np.copyto(self._shown.array(), self._centre.array())
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
            self._post.send(Farewell(end, SERVER), client)
        self._post.close()
        self._centre.close()
        self._shown.close()


class Between:
    """Batches, as multigpu.loader's; meanwhile() is called before each is handed out."""

    def __init__(self, batches, meanwhile):
        self._batches, self._meanwhile = batches, meanwhile

    def read(self, requests):
        for images in self._batches.read(requests):
            self._meanwhile()
            yield images


def stage(message):
    """Where a client stands: what it may say after a step, in this order, each once."""
    return message.step, ORDER.index(type(message))


def passed(every, before, after):
    """Whether iterations that are multiples of `every` (None: none are) lie between two Positions."""
    return every is not None and after.iteration // every > before.iteration // every
