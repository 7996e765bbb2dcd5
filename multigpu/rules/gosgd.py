"""Gossip: after a step a worker pushes its weights to another one, now and then, at random; nobody waits for anybody.

    v_i <- mu v_i - lr_p (g_i + eta w_i),  w_i <- w_i + v_i          each step, on worker i alone
    a_s <- a_s / 2;  push (w_s, a_s) to r                            with probability p, r uniformly another worker
    w_r <- (a_r w_r + a_s w_s) / (a_r + a_s),  a_r <- a_r + a_s      when it arrives

a_i, the share of worker i in what they all know, begins at 1/N.  The sum of all a, and of all a w, those under way
included, are what they were: sum of a_i w_i is the consensus, which is validated and saved.

A push is a Push, which says the share, and an array.  At most one push of a worker is under way, from a copy of its
weights; a worker that wants to push again waits for it, and receives meanwhile, so even p = 1 cannot come to a halt.

Where all have to know what they know together, at the end of an epoch and around saving, they enter consensus(): all
say how many messages each has sent to each, and receive until nothing is under way; their shares must then add up to
1.  A worker that is asked to stop tells the others and enters; they do so after their step, wherever they are.  Since
one enters because it stops, all skip what they have entered for, and rank 0 saves.  Everybody enters the same number of
times, so nobody waits for one who has ended.  In a run that is resumed all begin at the consensus, with 1/N.

Source: Blot et al. 2016, algorithms 3 and 4; Ma et al. 2016.
"""

import pkgutil
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from alexnet.augment import random_stream
from multigpu.device.host import HostDevice
from multigpu.exchange.flat import Flat, blocks
from multigpu.partners import Closed, OutOfStep, greet, total
from multigpu.rules import POST, Agreed, Exchange
from multigpu.rules.bsp import shapes_of, weights_and_velocities

GOSSIP = 3                                       # which random stream: alexnet.augment has 1 and 2
LOOKS = 2                                        # messages of each other worker that a step looks for at most
ROUNDING = 1e-9                                  # how far the sum of all shares may be from 1


class Push(NamedTuple):
    """An array follows, of weights after this step, with this share."""

    step: int
    sender: int
    share: float


class Stop(NamedTuple):
    """I have been asked to stop."""

    step: int
    sender: int


class Lapped(NamedTuple):
    """Where my time went, to rank 0."""

    step: int
    sender: int
    lap: Any


def connect(config, network, device, partners, recorder, step=0):
    """The Gosgd of this worker, as multigpu.rules says; all of them call it."""
    greet(config, network, device, partners, step)
    host = HostDevice(device.on_host)
    lots = [Lot(each, Flat(host, shapes_of(each))) for each in weights_and_velocities(network) if each]
    return Gosgd(network, lots, config, partners, recorder)


def receiver(seed, rank, size, step, p):
    """Whom a worker pushes to after a step: another rank, or None; a function of the seed, the rank and the step."""
    draw = random_stream(seed, GOSSIP, rank, step)
    if draw.random() >= p:
        return None
    other = int(draw.integers(size - 1))
    return other + (other >= rank)


def halved(share):
    """a <- a / 2: what a worker keeps, and what it pushes."""
    return share / 2, share / 2


def merged(weights, share, pushed, pushed_share):
    """Merge what was pushed into a worker's weights, in place; returns its new share.

        w_r <- (a_r w_r + a_s w_s) / (a_r + a_s) = w_r + a_s / (a_r + a_s) (w_s - w_r),  a_r <- a_r + a_s

    weights, pushed  float arrays of one dimension, alike in length and dtype
    """
    both = share + pushed_share
    part = weights.dtype.type(pushed_share / both)
    for w, theirs, way in blocks(weights, pushed):
        np.subtract(theirs, w, out=way)
        way *= part
        w += way
    return both


class Lot(NamedTuple):
    """Shared variables, and the Flat that they lie in: on the host it is their own memory."""

    variables: list
    flat: Flat

    def pack(self):
        """The array of them all, up to date."""
        self.flat.pack(self.variables)
        return self.flat.array()

    def unpack(self):
        self.flat.unpack(self.variables)


class Gosgd(Exchange):
    """What the training loop is handed; made by connect().

    lots  weights, and velocities if there are any
    """

    def __init__(self, network, lots, config, partners, recorder):
        self._network, self._lots, self._seed, self._p = network, lots, config.random_seed, config.p
        self._partners, self._recorder, self._post = partners, recorder, pkgutil.resolve_name(POST)(partners)
        self._comm, self._rank, self._size = partners.comm, partners.rank, partners.size
        for lot in lots:
            lot.pack()
            lot.unpack()
        self._weights, self._share = lots[0], 1 / self._size
        self._copy, room = (np.empty_like(lot.flat.array()) for lot in (lots[0], lots[-1]))    # of pushes; of the rest
        self._kept, self._room = (self._copy, room), room[: self._copy.size]     # around a consensus; of what arrives
        self._leaving, self._arriving = None, None
        self._stop, self._over, self._entries, self._totals, self._laps = False, False, 0, 0, {}

    def step(self, *inputs, rate):
        return self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        with self._recorder.time("comm"):
            for _ in range(LOOKS * self._size):
                if not self._receive():
                    break
        if (other := receiver(self._seed, self._rank, self._size, step, self._p)) is not None:
            self._push(step, other)
        if stop and not self._stop:
            self._stop = True
            for other in self._others():
                self._post.send(Stop(step, self._rank), other)
        return Agreed(float(cost), float(error), self._stop)

    def _others(self):
        return [rank for rank in range(self._size) if rank != self._rank]

    def _push(self, step, other):
        """Push the weights and half of the share, once the last push has left."""
        with self._recorder.time("sync"):
            self._until(self._left)
        with self._recorder.time("comm"):
            np.copyto(self._copy, self._weights.pack())
            self._share, pushed = halved(self._share)
            self._post.send(Push(step, self._rank, pushed), other)
            self._leaving = self._comm.Isend(self._copy, other, self._post.ARRAY)

    def _left(self):
        """Whether the last push has left its copy."""
        return self._leaving is None or self._leaving.Test()

    def _until(self, look):
        """Wait until look() is true, and receive meanwhile."""
        self._post.until(lambda: look() or self._receive() and False)

    def _receive(self):
        """Take one message, or the array that the last one has announced; returns whether anything has come."""
        if self._arriving:
            return self._receive_array()
        message = self._post.take()
        if type(message) is Push:
            self._arriving = message, self._comm.Irecv(self._room, message.sender, self._post.ARRAY)
        elif type(message) is Stop:
            self._stop = True
        elif type(message) is Lapped and self._rank == 0:
            self._laps[message.sender] = message.lap
        elif message is not None:
            self._post.refuse(message, "Push or Stop")
        return message is not None

    def _receive_array(self):
        """Merge the array if it is here."""
        push, request = self._arriving
        if not request.Test():
            return False
        self._share = merged(self._weights.pack(), self._share, self._room, push.share)
        self._weights.unpack()
        self._arriving = None
        return True

    @contextmanager
    def consensus(self, stop=False):
        """See Exchange; every worker goes on from its own weights and velocities, unless all stop."""
        if not self._over:
            self._over = self._enter(stop or self._stop)
            self._mix()
        try:
            yield self._over
        finally:
            if not self._over:
                self._unmix()

    def _enter(self, stop):
        """Wait for all, and until nothing is under way; returns whether one of them has to stop."""
        self._entries += 1
        told = self._gather(np.array([self._entries, stop, *self._post.sent]))
        if set(told[:, 0]) != {self._entries}:
            raise OutOfStep(
                f"the ranks have entered consensus {', '.join(map(str, told[:, 0]))} times, by rank: "
                "their runs have parted; start all anew from one checkpoint"
            )
        owed = told[:, 2 + self._rank].sum()
        self._until(lambda: self._post.received >= owed and not self._arriving and self._left())
        shares = self._gather(np.array([self._share]))
        if abs(shares.sum() - 1) > ROUNDING:
            raise OutOfStep(f"the shares of all ranks must add up to 1, got {shares.ravel().tolist()}: a push was lost")
        return bool(told[:, 1].any())

    def _gather(self, own):
        """The arrays of all ranks, by rank; receives meanwhile."""
        of_all = np.empty((self._size, own.size), own.dtype)
        self._until(self._comm.Iallgather(own, of_all).Test)
        return of_all

    def _mix(self):
        """Have the network hold the sum of a_i w_i, and of a_i v_i, over the workers."""
        for lot, kept in zip(self._lots, self._kept, strict=False):
            array = lot.pack()
            np.copyto(kept, array)
            array *= np.float32(self._share)
            self._post.add_up(array)
            lot.unpack()

    def _unmix(self):
        """Have the network hold this worker's own weights and velocities again."""
        for lot, kept in zip(self._lots, self._kept, strict=False):
            np.copyto(lot.flat.array(), kept)
            lot.unpack()

    def gather(self, lap):
        if self._rank:
            self._post.send(Lapped(lap.iteration, self._rank, lap), 0)
            return []
        return [lap, *self._laps.values()]

    def total(self, values, stop):
        self._totals += 1
        return total(self._partners, self._totals, values, stop)

    def close(self):
        self._post.close()
        self._partners.meet(Closed(0))
        for lot in self._lots:
            lot.flat.close()
