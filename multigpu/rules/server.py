"""A server and its clients: each client comes when it likes, first come first served; nobody waits for another client.

multigpu.rules.turns has what they say, multigpu.rules.client the client.

The server counts the clients' steps.  When all of them together make an epoch it validates on a copy of the centre, and
serves between two batches; so an exchange waits for a batch of validation at most, or for a checkpoint to be written.
A stop that any rank is asked for reaches each client with its next Turn.

Where the rule does without clients (multigpu.rules.Rule.lone) nobody waits for one that is late, a stop that a client
alone is asked for lets that one go, and one that the watchman has dropped is struck off, also in the middle of an
exchange: of its last push the pieces that have come are in the centre.  The epochs are those of the clients who are
there or have finished, on average.

A checkpoint holds the centre, and velocities of 0.  The clients' own velocities belong to where the clients are, and in
a run that is resumed all of them begin at the centre: they are up to speed again after 1 / (1 - momentum) steps.

Source: Zhang et al. 2015, algorithm 1; Ma et al. 2016, section 3.1; Paine et al. 2013, section 2.3.
"""

import pkgutil
from contextlib import contextmanager

import numpy as np

from alexnet.training import Position, end_epoch, save, steps_of_epoch
from multigpu.device.host import HostDevice
from multigpu.exchange.flat import Flat
from multigpu.partners import PartnerDied, check_alike, greet, hello_of
from multigpu.rules import POST, RULES, Exchange
from multigpu.rules.bsp import shapes_of, weights_and_velocities
from multigpu.rules.turns import ORDER, SERVER, Farewell, Join, Joined, Leave, Push, Turn, stage

BEFORE = (-1, 0)                                 # the stage of a client that has not come yet


def connect(config, network, device, partners, recorder, step, keeper, client):
    """The Server at rank 0, a Client at the others, as multigpu.rules says; all of them call it.

    keeper  (the centre's Flat, the Post) -> Keeper         client  (Client's arguments) -> Client
    """
    lone = RULES[config.rule].lone
    if not lone:
        greet(config, network, device, partners, step)
    hello = hello_of(config, network, device, step) if lone else None
    weights, velocities = weights_and_velocities(network)
    post, host, shapes = pkgutil.resolve_name(POST)(partners), HostDevice(device.on_host), shapes_of(weights)
    if partners.rank != SERVER:
        made = client(network, weights, Flat(host, shapes), post, recorder)
        made.hello = hello
        return made
    for velocity in velocities:                  # those of a checkpoint are the clients' to go on with
        velocity.set_value(np.zeros_like(velocity.get_value(borrow=True)), borrow=True)
    if step and config.adapts:
        recorder.warn(
            f"the accumulators of update={config.update} are the clients' own, and in no checkpoint of "
            f"rule={config.rule}: they begin at 0 again, so the first steps are as large as a training's first"
        )
    return Server(network, weights, Flat(host, shapes), keeper(Flat(host, shapes), post), post, recorder, hello)


class Server(Exchange):
    """What rank 0 is handed: it trains nothing, and holds the centre.

    variables  of the network, which the centre stands for      shown  Flat of theirs, what is validated and saved
    keeper     the rule's Keeper, with the centre               post   multigpu.rules.post.Post
    hello      this rank's own, where clients come and go; None: all of them are there
    """

    def __init__(self, network, variables, shown, keeper, post, recorder, hello=None):
        self._network, self._variables, self._centre, self._shown = network, variables, keeper.centre, shown
        self._keeper, self._recorder, self._post = keeper, recorder, post
        clients = range(1, post.size)
        self._here = dict.fromkeys(() if hello else clients, BEFORE)     # the stage that each client came with last
        self._awaited, self._dropped = set(clients if hello else ()), set()
        self._ends, self._steps = {}, dict.fromkeys(self._here, 0)       # the last steps of those who have finished; of
        self._hello, self._position, self._laps = hello, Position(), {}  # those and who is here: steps since all began
        self._moved, self._far, self._length = False, 0, 1       # whether anything was pushed; _mean; steps of an epoch
        self._asked, self._begun, self._stop = lambda: False, 0, False
        self._step = int(network.step.get_value())
        self._centre.pack(variables)

    def run(self, run, position):
        """Serve until all clients have left; validate and save when their steps together make an epoch."""
        self._asked, self._begun, saved = run.stop_requested, position.iteration, None
        run = run._replace(batches=Between(run.batches, self.serve), stop_requested=self._stopping)
        steps = self._length = steps_of_epoch(run)
        while True:
            before, position = position, self._reached(position, steps)
            self._position = position
            if position.batch == steps and not self._stopping():
                position, stop = end_epoch(run, position)
                self._keeper.report(len(self._steps), self._recorder)
                if not stop and position.epoch % run.config.snapshot_freq == 0:
                    saved = self._save(run, position)
            elif passed(run.config.snapshot_iterations, before, position):
                saved = self._save(run, position)
            elif not self._here and not self._awaited:
                break
            else:
                self._post.until(self.serve)
        if saved != position:
            self._save(run, position)
        self._keeper.report(len(self._steps), self._recorder)
        if self._dropped and not self._ends:
            raise PartnerDied(f"no client is left; all is saved after {position.iteration} iterations")
        return position

    def _reached(self, position, steps):
        """The Position that the clients' steps together make, at most the end of the epoch."""
        ahead = max(0, min(self._mean() - position.iteration, steps - position.batch))
        return position._replace(batch=position.batch + ahead, iteration=position.iteration + ahead)

    def _mean(self):
        """The iteration that the clients have reached on average; it does not fall when one comes or goes."""
        if self._steps:
            self._far = max(self._far, self._begun + sum(self._steps.values()) // len(self._steps))
        return self._far

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
        for served in range(len(self._here) + len(self._awaited)):
            message = self._post.take()
            if message is None:
                return self._strike_off() or served > 0
            if message.sender not in self._dropped:
                self._answer(message)
        return True

    def _strike_off(self):
        """Go on without those who have been dropped, and have nothing more to say; returns whether there were any."""
        dropped = self._post.gone & (self._here.keys() | self._awaited) if self._hello else set()
        for client in dropped:
            self._let_go(client)
        self._dropped |= dropped
        return bool(dropped)

    def _let_go(self, client):
        self._mean()                             # which counts it for the last time
        self._awaited.discard(client)
        self._here.pop(client, None)
        self._steps.pop(client, None)

    def _welcome(self, join):
        """Have a client begin where all stand."""
        check_alike(join.sender, join.hello, self._hello)
        ahead = max(0, self._mean() - self._position.iteration)          # where validation keeps the server
        epochs, batch = divmod(self._position.batch + ahead, self._length)
        iteration, epoch = self._position.iteration + ahead, self._position.epoch + epochs
        self._admit(join.sender, iteration)
        if self._moved:
            self._recorder.log(f"rank {join.sender} has joined at iteration {iteration}")
        position = self._position._replace(epoch=epoch, batch=batch, iteration=iteration)
        self._post.send(Joined(join.step, SERVER, position, self._moved, self._stopping()), join.sender)

    def _admit(self, client, iteration):
        self._awaited.discard(client)
        self._here[client], self._steps[client] = BEFORE, iteration - self._begun

    def _answer(self, message):
        if type(message) is Join and message.sender in self._awaited:
            return self._welcome(message)
        if message.sender in self._awaited:      # it begins where all have begun
            self._admit(message.sender, self._begun)
        client, before = message.sender, self._here.get(message.sender)
        if before is None or type(message) not in ORDER or (now := stage(message)) <= before:
            after = "" if before is None else f", after step {before[0]}"
            self._post.refuse(message, f"Push or Leave of a client that is here{after}")
        self._here[client] = now
        self._record(message)
        if type(message) is Leave:
            self._part(message)
        elif not self._exchange(message, client):
            return
        self._keeper.served(message, self._recorder)

    def _exchange(self, message, client):
        """Do what a Push or a Fetch asks for; returns False where the client has been dropped meanwhile."""
        self._moved = self._moved or type(message) is Push
        update, there, back, note = self._keeper.answer(message)
        self._post.send(Turn(message.step, SERVER, self._stopping(), note), client)
        try:
            with self._post.waiting():
                self._post.take_over(client, self._centre.array().size, update, there, back)
        except PartnerDied:
            return False
        return True

    def _part(self, leave):
        """A client has left: at its end, or asked to stop; where it alone was asked, the others go on."""
        client = leave.sender
        if leave.stop and self._hello and not self._stopping():
            self._let_go(client)
            self._recorder.log(f"rank {client} was asked to stop, and has left after step {leave.step}; "
                               f"{len(self._here) + len(self._awaited)} clients are left")  # fmt: skip
            return self._post.send(Farewell(leave.step, SERVER, alone=True), client)
        self._ends[client] = leave.step
        del self._here[client]
        self._stop = self._stop or leave.stop

    def _record(self, message):
        """Record the steps of a client, and a lap once it is known of all."""
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


def passed(every, before, after):
    """Whether iterations that are multiples of `every` (None: none are) lie between two Positions."""
    return every is not None and after.iteration // every > before.iteration // every
