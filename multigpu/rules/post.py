"""Messages between ranks that go on without each other: nobody waits for a barrier, and who waits does so asleep.

A message is a NamedTuple of a kind of its own that says the step and the sender it belongs to; one that does not fit
ends the run.  Arrays go apart from them, over the same communicator: whoever is told that one follows receives it.

MPI moves a message while both ends call it.  A blocking call spins, which takes a core from those who compute; so a
rank that has to wait for long looks, sleeps, and looks again.

Importing this file starts MPI, so rules take Post by name.
"""

import time
from itertools import pairwise

import numpy as np

from multigpu.mpi import MPI
from multigpu.partners import OutOfStep, PartnerDied, parted

SHORTEST, LONGEST = 1e-4, 1e-3                   # seconds of sleep between two looks
BRIEF, SPIN = 1e-6, 0.2                          # seconds of sleep while an array moves: the core is let go; at first
LATE = 10.0                                      # seconds in which the watchman sees a death that MPI has seen
PIECE = 1 << 20                                  # floats, 4 MB: smaller ones change hands too often on busy cores


class Post:
    """This rank's messages to and from the others, sent and received, counted.

    partners  multigpu.mpi.MpiPartners
    gone      the ranks that have been dropped: nothing more comes from them
    """

    TALK, ARRAY = 1, 2                           # tags: of messages, and of the arrays that they announce

    def __init__(self, partners):
        self.comm, self.rank, self.size = partners.comm, partners.rank, partners.size
        self.sent, self.received = [0] * self.size, 0            # messages, by receiver; by now
        self.waiting, self.gone, self._partners = partners.waiting, partners.gone, partners
        self._leaving, self._abandoned = [], []  # (request, receiver) of what is under way; what never will arrive

    def send(self, message, other):
        """Send a message, without waiting for it to arrive."""
        self._all_have_left()
        self._leaving.append((self.comm.isend(message, other, self.TALK), other))
        self.sent[other] += 1

    def take(self):
        """The message that came first, of those that are here by now; None where there is none."""
        status = MPI.Status()
        envelope = self.comm.improbe(MPI.ANY_SOURCE, self.TALK, status)
        if envelope is None:
            return None
        words = bytearray(status.Get_count(MPI.BYTE))
        try:
            self._finish([envelope.Irecv([words, MPI.BYTE])], status.source, words)
        except PartnerDied:
            return None
        message = MPI.pickle.loads(words)
        if message.sender != status.source:
            raise OutOfStep(
                f"rank {status.source} sends {type(message).__name__} in the name of rank {message.sender}: "
                "one of them is not of this run; start all anew from one checkpoint"
            )
        self.received += 1
        return message

    def hear(self, kind, step, sender):
        """Wait for the one message that may come now; raises OutOfStep for another."""
        message = self.until(self.take)
        if (type(message), message.step, message.sender) != (kind, step, sender):
            self.refuse(message, f"{kind.__name__} of step {step} from rank {sender}")
        return message

    def refuse(self, message, awaited):
        """Raise OutOfStep for a message that is not what this rank waits for."""
        raise parted(f"rank {message.sender}", message, f"rank {self.rank}", awaited)

    def until(self, look):
        """Call look() again and again, until it returns what is true; returns that."""
        with self.waiting():
            pause = SHORTEST
            while not (found := look()):
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
            return found

    def add_up(self, array):
        """Replace a float32 array by its sum over all ranks, each of which calls this now."""
        with self.waiting():
            self.comm.Allreduce(MPI.IN_PLACE, array)

    def now(self):
        """The time, in seconds since some moment."""
        return time.perf_counter()

    def hand_over(self, array, server, there=True, back=True):
        """A client's side of an exchange: each piece goes to the server, and comes back into its place.

        there, back  whether it goes, and whether it comes
        """
        pieces = [array[part] for part in parts(array.size)]
        going, coming = pieces if there else [], pieces if back else []
        for sent, got in staggered(going, coming):
            self._swap(sent, got, server)

    def take_over(self, client, length, update, there=True, back=True):
        """The server's side: each piece of `length` float32 is received, update(piece, slice) changes it, it goes back.

        there, back  whether the client's pieces come, and whether they go back
        """
        here, coming = np.empty((2, min(PIECE, length)), np.float32)
        slices = parts(length)
        if there:
            self._swap(None, here[: size_of(slices[0])], client)
        for part, following in zip(slices, [*slices[1:], None], strict=True):
            piece = here[: size_of(part)]
            update(piece, part)
            self._swap(piece if back else None, coming[: size_of(following)] if there and following else None, client)
            here, coming = coming, here

    def _swap(self, sent, got, other):
        """Send one array, and receive another meanwhile; None: nothing."""
        requests = [] if got is None else [self.comm.Irecv(got, other, self.ARRAY)]
        if sent is not None:
            requests.append(self.comm.Isend(sent, other, self.ARRAY))
        self._finish(requests, other, (sent, got))

    def _finish(self, requests, other, memory):
        """Wait for what is under way to or from another rank, in this memory; raises PartnerDied where it is gone.

        A blocking call would wait for a dead rank for ever.
        """
        began, late = time.monotonic(), None
        while True:
            try:
                if late is None and MPI.Request.Testall(requests):
                    return
            except MPI.Exception as error:       # MPI has seen it die before the watchman has
                late = error
            if other in self.gone:
                self._abandoned.append((requests, memory))       # MPI may yet read what was to be sent
                raise PartnerDied(f"rank {other} is gone")
            waited = time.monotonic() - began
            if late and waited > LATE:
                raise late
            time.sleep(BRIEF if waited < SPIN else SHORTEST)

    def leave(self):
        """Say that this rank leaves, and the others go on."""
        self._partners.left = True

    def close(self):
        """Wait until all that was sent has left."""
        self.until(self._all_have_left)

    def _all_have_left(self):
        """Whether all messages have left that have where to go."""
        self._leaving = [(request, other) for request, other in self._leaving if not self._has_left(request, other)]
        return not self._leaving

    def _has_left(self, request, other):
        if other in self.gone:
            self._abandoned.append(request)
            return True
        try:
            return request.Test()
        except MPI.Exception:                    # the other is dead, which the watchman will say
            return True


def parts(length):
    """The slices of an array that are exchanged one after the other."""
    return [slice(begin, min(begin + PIECE, length)) for begin in range(0, length, PIECE)]


def size_of(part):
    return part.stop - part.start


def staggered(going, coming):
    """Pairs of what is sent and what is received meanwhile: a piece comes back while the next one goes; None: nothing.

    Without `going` or `coming` each of the others is alone.
    """
    if not (going and coming):
        return [(piece, None) for piece in going] + [(None, piece) for piece in coming]
    return [(going[0], None), *((after, before) for before, after in pairwise(going)), (None, coming[-1])]
