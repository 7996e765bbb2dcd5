"""A server and its clients: each client comes when it likes, first come first served; nobody waits for another client.

    client                                   server
    Push(step, records, laps)  ---------->   takes what has been recorded since the client last came
                               <----------   Turn(step, stop)
    array, piece by piece      <--------->   update(piece, piece of the centre); the piece goes back
    Leave(step, ..., stop)     ---------->   the client has taken its last step; stop: because it was asked to
                               <----------   Farewell(step): all have left, and the centre is saved

What an exchange does to a client's array and to the centre, the server's own, is the rule's: a pure function of both,
in place.  A piece fits the last-level cache, and the server has no second array of a client's size.

The server counts the clients' steps.  When all of them together make an epoch it validates on a copy of the centre, and
serves between two batches; so an exchange waits for a batch of validation at most, or for a checkpoint to be written.
A stop that any rank is asked for reaches each client with its next Turn.

A checkpoint holds the centre, and velocities of 0.  The clients' own velocities belong to where the clients are, and in
a run that is resumed all of them begin at the centre: they are up to speed again after 1 / (1 - momentum) steps.

Source: Zhang et al. 2015, algorithm 1; Ma et al. 2016, section 3.1.
"""

from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from alexnet.training import end_epoch, save, steps_of_epoch, train
from multigpu.rules import Agreed, Exchange

SERVER = 0                                       # its rank
PIECE = 1 << 20                                  # floats, 4 MB: smaller ones change hands too often on busy cores


class Push(NamedTuple):
    """Client to server: my array is to be exchanged after this step; what I have recorded since my last message."""

    step: int
    sender: int
    records: list
    laps: list


class Turn(NamedTuple):
    """Server to client: send your array now; and whether all stop."""

    step: int
    sender: int
    stop: bool


class Leave(NamedTuple):
    """Client to server: this step was my last."""

    step: int
    sender: int
    records: list
    laps: list
    stop: bool


class Farewell(NamedTuple):
    """Server to client: all is done and saved."""

    step: int
    sender: int


class Client(Exchange):
    """What the training loop of a worker is handed.

    variables  the shared variables that are exchanged      flat  multigpu.exchange.flat.Flat of theirs, on the host
    every      steps from one exchange to the next          post  multigpu.rules.post.Post
    """

    def __init__(self, network, variables, flat, every, post, recorder):
        self._network, self._variables, self._flat, self._every = network, variables, flat, every
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
        self._post.send(Leave(step, self._post.rank, *self._told(), self._stop), SERVER)

    def step(self, *inputs, rate):
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        self._stop = self._stop or bool(stop)
        if not self._stop and step % self._every == 0:
            stop = self._exchange(step)
        return Agreed(float(cost), float(error), bool(stop))

    def _exchange(self, step):
        """Have the array exchanged; returns whether all stop."""
        with self._recorder.time("comm"):
            self._flat.pack(self._variables)
        with self._recorder.time("sync"):
            self._post.send(Push(step, self._post.rank, *self._told()), SERVER)
            turn = self._post.hear(Turn, step, SERVER)
        with self._recorder.time("comm"), self._post.waiting():
            hand_over(self._post, self._flat.array())
            self._flat.unpack(self._variables)
        return turn.stop

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

    variables  of the network, which the centre stands for      centre, shown  Flats of theirs: shown is what is
               validated and saved
    update     (piece of a client's array, piece of the centre) -> None, changes both
    post       multigpu.rules.post.Post
    """

    def __init__(self, network, variables, centre, shown, update, post, recorder):
        self._network, self._variables, self._centre, self._shown = network, variables, centre, shown
        self._update, self._recorder, self._post = update, recorder, post
        self._here = dict.fromkeys(range(1, post.size), -1)      # clients: the step that each came with last
        self._workers, self._ends = post.size - 1, {}            # ends: the last steps of those who have left
        self._taken, self._laps, self._stop = 0, {}, False
        self._step = int(network.step.get_value())
        centre.pack(variables)

    def run(self, run, position):
        """Serve until all clients have left; validate and save when their steps together make an epoch."""
        self._asked, self._begun, saved = run.stop_requested, position.iteration, None
        run = run._replace(batches=Between(run.batches, self._serve), stop_requested=self._stopping)
        steps = steps_of_epoch(run)
        while True:
            before, position = position, self._reached(position, steps)
            if position.batch == steps and not self._stopping():
                position, stop = end_epoch(run, position)
                if not stop and position.epoch % run.config.snapshot_freq == 0:
                    saved = self._save(run, position)
            elif passed(run.config.snapshot_iterations, before, position):
                saved = self._save(run, position)
            elif not self._here:
                break
            else:
                self._post.until(self._serve)
        if saved != position:
            self._save(run, position)
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

    def _serve(self):
        """Serve those who have come by now, each once at most; returns whether anybody has."""
        for served in range(len(self._here)):
            message = self._post.take()
            if message is None:
                return served > 0
            self._answer(message)
        return True

    def _answer(self, message):
        client, before = message.sender, self._here.get(message.sender)
        if type(message) not in (Push, Leave) or before is None or message.step < before + (type(message) is Push):
            self._post.refuse(message, f"Push or Leave of a client that is here, after step {before}")
        self._here[client] = message.step
        self._record(message)
        if type(message) is Push:
            self._post.send(Turn(message.step, SERVER, self._stopping()), client)
            with self._post.waiting():
                take_over(self._post, client, self._centre.array(), self._update)
        else:
            self._ends[client] = self._here.pop(client)
            self._stop = self._stop or message.stop

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


def passed(every, before, after):
    """Whether iterations that are multiples of `every` (None: none are) lie between two Positions."""
    return every is not None and after.iteration // every > before.iteration // every


def parts(length):
    """The slices of an array that are exchanged one after the other."""
    return [slice(begin, min(begin + PIECE, length)) for begin in range(0, length, PIECE)]


def hand_over(post, array):
    """A client's side of an exchange: each piece goes to the server, and comes back into its place."""
    pieces, comm, tag = [array[part] for part in parts(array.size)], post.comm, post.ARRAY
    comm.Send(pieces[0], SERVER, tag)
    for before, piece in pairwise(pieces):
        comm.Sendrecv(piece, SERVER, tag, before, SERVER, tag)
    comm.Recv(pieces[-1], SERVER, tag)


def take_over(post, client, centre, update):
    """The server's side: each piece is received, updated with its piece of the centre, and sent back."""
    pieces, comm, tag = [centre[part] for part in parts(centre.size)], post.comm, post.ARRAY
    here, coming = np.empty((2, min(PIECE, centre.size)), centre.dtype)
    comm.Recv(here[: pieces[0].size], client, tag)
    for piece, following in pairwise(pieces):
        update(here[: piece.size], piece)
        comm.Sendrecv(here[: piece.size], client, tag, coming[: following.size], client, tag)
        here, coming = coming, here
    last = here[: pieces[-1].size]
    update(last, pieces[-1])
    comm.Send(last, client, tag)
