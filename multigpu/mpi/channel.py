"""Asynchronous point-to-point messages between ranks; waiting ranks sleep instead of spinning.

A message is a NamedTuple of a specific type, with its step and its sender. An unexpected message ends the run. Arrays
are sent separately over the same communicator; a message announces the array, and its receiver then receives the array.

MPI transfers a message only while both ends call MPI. A blocking call spins, which occupies a core that other ranks
need for computation. A rank that has to wait for long therefore alternates between polling and sleeping.

Importing this module initialises MPI, so rules import Channel by name.
"""

import time
from itertools import pairwise

import numpy as np

from multigpu.communicator import DesyncError, PeerDied, desync_error
from multigpu.mpi.communicator import MPI

SHORTEST, LONGEST = 1e-4, 1e-3                   # seconds of sleep between two polls
BRIEF, SPIN = 1e-6, 0.2                          # seconds: sleep during a transfer, yields the core; for how long
LATE = 10.0                                      # seconds in which JobMonitor detects a death that MPI has reported
PIECE = 1 << 20                                  # floats, 4 MB: smaller pieces need too many handovers on busy cores


class Channel:
    """Sends and receives messages of this rank, and counts them.

    comm  multigpu.mpi.communicator.MpiCommunicator
    gone      the dropped ranks, from which no further messages arrive
    """

    TALK, ARRAY = 1, 2                           # tags of messages, and of the arrays that they announce

    def __init__(self, comm):
        self.comm, self.rank, self.size = comm.mpi, comm.rank, comm.size
        self.sent, self.received = [0] * self.size, 0            # number of messages, per receiver and in total
        self.waiting, self.dropped_ranks, self._comm = comm.waiting, comm.dropped_ranks, comm
        self._leaving, self._abandoned = [], []  # (request, receiver) of pending messages; undeliverable ones

    def send(self, message, other):
        """Send a message without waiting for its arrival."""
        self._all_have_left()
        self._leaving.append((self.comm.isend(message, other, self.TALK), other))
        self.sent[other] += 1

    def take(self):
        """Return the first message that has arrived, or None if there is none."""
        status = MPI.Status()
        envelope = self.comm.improbe(MPI.ANY_SOURCE, self.TALK, status)
        if envelope is None:
            return None
        words = bytearray(status.Get_count(MPI.BYTE))
        try:
            self._finish([envelope.Irecv([words, MPI.BYTE])], status.source, words)
        except PeerDied:
            return None
        message = MPI.pickle.loads(words)
        if message.sender != status.source:
            raise DesyncError(
                f"rank {status.source} sends {type(message).__name__} in the name of rank {message.sender}: "
                "one of them does not belong to this run; restart all from one checkpoint"
            )
        self.received += 1
        return message

    def recv(self, kind, step, sender):
        """Wait for the only message that is valid now; raises DesyncError for any other message."""
        message = self.until(self.take)
        if (type(message), message.step, message.sender) != (kind, step, sender):
            self.refuse(message, f"{kind.__name__} of step {step} from rank {sender}")
        return message

    def refuse(self, message, awaited):
        """Raise DesyncError for a message that this rank does not expect."""
        raise desync_error(f"rank {message.sender}", message, f"rank {self.rank}", awaited)

    def until(self, look):
        """Call look() repeatedly until it returns a true value; returns that value."""
        with self.waiting():
            pause = SHORTEST
            while not (found := look()):
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
            return found

    def add_up(self, array):
        """Replace a float32 array by its sum over all ranks. Collective."""
        with self.waiting():
            self.comm.Allreduce(MPI.IN_PLACE, array)

    def now(self):
        """Return the time in seconds since an arbitrary origin."""
        return time.perf_counter()

    def hand_over(self, array, server, there=True, back=True):
        """Client side of an exchange: send each piece to the server and receive it back in place.

        there, back  whether pieces are sent, and whether they are received
        """
        pieces = [array[part] for part in parts(array.size)]
        going, coming = pieces if there else [], pieces if back else []
        for sent, got in staggered(going, coming):
            self._swap(sent, got, server)

    def take_over(self, client, length, update, there=True, back=True):
        """Server side of an exchange of `length` float32 values.

        Each piece is received, changed by update(piece, slice), and sent back.

        there, back  whether pieces are received from the client, and whether they are sent back
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
        """Send one array and receive another concurrently; None for no array."""
        requests = [] if got is None else [self.comm.Irecv(got, other, self.ARRAY)]
        if sent is not None:
            requests.append(self.comm.Isend(sent, other, self.ARRAY))
        self._finish(requests, other, (sent, got))

    def _finish(self, requests, other, memory):
        """Wait for transfers to or from another rank; raises PeerDied if the rank has been dropped.

        A blocking call would wait for a dead rank forever. `memory` refers to the arrays, to keep them allocated.
        """
        began, late = time.monotonic(), None
        while True:
            try:
                if late is None and MPI.Request.Testall(requests):
                    return
            except MPI.Exception as error:       # MPI detects the death before JobMonitor
                late = error
            if other in self.dropped_ranks:
                self._abandoned.append((requests, memory))       # MPI may still read this memory
                raise PeerDied(f"rank {other} is gone")
            waited = time.monotonic() - began
            if late and waited > LATE:
                raise late
            time.sleep(BRIEF if waited < SPIN else SHORTEST)

    def leave(self):
        """Mark this rank as having left; the others continue."""
        self._comm.has_left = True

    def close(self):
        """Wait until all messages have been sent."""
        self.until(self._all_have_left)

    def _all_have_left(self):
        """Return whether all messages to live ranks have been sent."""
        self._leaving = [(request, other) for request, other in self._leaving if not self._has_left(request, other)]
        return not self._leaving

    def _has_left(self, request, other):
        if other in self.dropped_ranks:
            self._abandoned.append(request)
            return True
        try:
            return request.Test()
        except MPI.Exception:                    # the rank is dead; JobMonitor reports it
            return True


def parts(length):
    """Return the slices of an array, in the order of their exchange."""
    return [slice(begin, min(begin + PIECE, length)) for begin in range(0, length, PIECE)]


def size_of(part):
    return part.stop - part.start


def staggered(going, coming):
    """Return pairs (piece to send, piece to receive): each piece is received while the next is sent.

    None stands for no piece. If `going` or `coming` is empty, each piece of the other list is transferred separately.
    """
    if not (going and coming):
        return [(piece, None) for piece in going] + [(None, piece) for piece in coming]
    return [(going[0], None), *((after, before) for before, after in pairwise(going)), (None, coming[-1])]
