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
from multigpu.partners import OutOfStep, parted

SHORTEST, LONGEST = 1e-4, 1e-3                   # seconds of sleep between two looks
PIECE = 1 << 20                                  # floats, 4 MB: smaller ones change hands too often on busy cores


class Post:
    """This rank's messages to and from the others, sent and received, counted.

    partners  multigpu.mpi.MpiPartners
    """

    TALK, ARRAY = 1, 2                           # tags: of messages, and of the arrays that they announce

    def __init__(self, partners):
        self.comm, self.rank, self.size = partners.comm, partners.rank, partners.size
        self.sent, self.received = [0] * self.size, 0            # messages, by receiver; by now
        self.waiting, self._leaving = partners.waiting, []

    def send(self, message, other):
        """Send a message, without waiting for it to arrive."""
        self._leaving = [request for request in self._leaving if not request.Test()]
        self._leaving.append(self.comm.isend(message, other, self.TALK))
        self.sent[other] += 1

    def take(self):
        """The message that came first, of those that are here by now; None where there is none."""
        status = MPI.Status()
        if not self.comm.iprobe(MPI.ANY_SOURCE, self.TALK, status):
            return None
        message = self.comm.recv(source=status.source, tag=self.TALK)
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
        if sent is not None and got is not None:
            self.comm.Sendrecv(sent, other, self.ARRAY, got, other, self.ARRAY)
        elif sent is not None:
            self.comm.Send(sent, other, self.ARRAY)
        elif got is not None:
            self.comm.Recv(got, other, self.ARRAY)

    def close(self):
        """Wait until all that was sent has left."""
        self.until(lambda: MPI.Request.Testall(self._leaving))


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
