"""All to all, sum, all gather: each rank sums one slice of the arrays of all ranks, and hands it to all.

    asa32   s = x_0 + x_1 + ... + x_N-1 in float32, in the order of ranks, then / N for the mean
    asa16   s = h(x_0) + h(x_1) + ... in float32, in the order of ranks, then / N, then h(s)

where h rounds to float16, to nearest, ties to even.  One rank makes each element and hands out what it made, so all
ranks end with the same bits.  For n floats on N ranks each sends 2 (N - 1) / N * 4 n bytes, for asa16 half of that.

Slices travel in pieces of a size that the cache holds.  While a piece is summed the next is on its way, and what is
summed is sent at once, so at any time both directions are busy:

    send piece k + 2 to its owner | sum piece k of one's own slice | send piece k - 1's sum to all

asa32 sends from the array itself, and receives sums into it.  The last piece of a slice has the Proof before it, on
the way to its owner that of the sender, on the way back that of the owner for all.

With error feedback each rank adds to what it sends what rounding took away from what it sent before, and each owner
does so with its sums:

    y = x + e,   send h(y),   e <- y - h(y)

Then the sum over all steps of what was exchanged differs from the exact one by no more than what the last rounding
took away, however many steps there were.  The e are zero at the start, of a run that is resumed, too: what is lost
then is less than one rounding.

Source: Ma et al. 2016, "Theano-MPI", section 3.2 (exchange strategies); Seide et al. 2014 (error feedback).
"""

from functools import partial

import numpy as np

from multigpu.exchange.over_mpi import OverMpi
from multigpu.exchange.proof import Proof, check
from multigpu.exchange.wire import Float16, Float32, Place
from multigpu.mpi import MPI

PIECE = 1 << 18                                  # floats, 1 MiB
WINDOW = 2                                       # pieces on their way at a time
TO_OWNER, TO_ALL = 1, 2                          # tags


def connect32(config, device, partners, shapes, warn, step=0):
    """asa32 of this rank with its partners, as multigpu.exchange says; all of them call it."""
    return OverMpi(device, partners, shapes, warn, lambda n: Asa("asa32", partners.comm, n, Float32))


def connect16(config, device, partners, shapes, warn, step=0):
    """asa16 of this rank with its partners, as multigpu.exchange says; all of them call it."""
    wire = partial(Float16, config.error_feedback)
    return OverMpi(device, partners, shapes, warn, lambda n: Asa("asa16", partners.comm, n, wire))


class Asa:
    """The reduction of arrays of `n` floats among the ranks of `comm`.

    name   of the strategy, for errors
    wire   Float32 or Float16: (floats, slice of them that this rank owns) -> how numbers travel
    piece  floats that travel together
    """

    spare = 0

    def __init__(self, name, comm, n, wire, piece=PIECE):
        self._name, self._comm, self._rank, self._size = name, comm, comm.rank, comm.size
        self._others = [(comm.rank + i) % comm.size for i in range(1, comm.size)]     # not all to rank 0 first
        self._ends = [n * rank // comm.size for rank in range(comm.size + 1)]
        longest = -(-n // comm.size)
        self._piece = min(piece, longest)
        self._pieces = -(-longest // self._piece)
        self._wire = wire(n, slice(*self._ends[comm.rank : comm.rank + 2]))
        self._total = np.empty(self._piece, np.float32)
        # what is sent to an owner, and comes from one; the terms of one's own slice, and their sums
        self._going, self._coming, self._terms = (
            {rank: self._places() for rank in range(comm.size)} for _ in range(3)
        )
        self._sums = self._places()
        self.sent = 0

    def _places(self):
        return [Place(self._piece, self._wire.dtype) for _ in range(WINDOW)]

    def reduce(self, array, step, mean=True):
        """Replace the arrays of all ranks by their sum, or their mean."""
        self.sent, self._wire.overflow, self._proof, self._proofs = 0, None, Proof(step, step), []
        asked, handed = {}, {}
        for k in range(min(WINDOW, self._pieces)):
            asked[k] = self._ask(array, k)
        for k in range(self._pieces):
            sending, receiving = asked.pop(k)
            MPI.Request.Waitall(receiving)
            if k >= WINDOW:
                self._take(array, k - WINDOW, handed.pop(k - WINDOW))
            message = self._sum(array, k, mean)
            MPI.Request.Waitall(sending)         # before sums come to where that was sent from
            handed[k] = self._hand_out(array, k, message)
            if k + WINDOW < self._pieces:
                asked[k + WINDOW] = self._ask(array, k + WINDOW)
        for k, requests in handed.items():
            self._take(array, k, requests)
        check(self._proofs, self._name, step, self._size)

    def _part(self, rank, k):
        """Piece k of a rank's slice, which may be empty."""
        first, end = self._ends[rank : rank + 2]
        return slice(min(first + k * self._piece, end), min(first + (k + 1) * self._piece, end))

    def _ask(self, array, k):
        """Send piece k of each other slice to its owner, and expect that of one's own from each: requests of both."""
        mine, last = self._part(self._rank, k), k == self._pieces - 1
        receiving = [
            self._comm.Irecv(self._terms[rank][k % WINDOW].message(mine.stop - mine.start, last), rank, TO_OWNER)
            for rank in self._others
        ]
        sending = []
        for owner in self._others:
            place, part = self._going[owner][k % WINDOW], self._part(owner, k)
            values = self._wire.encode(place.values(part.stop - part.start), array[part], part)
            sending.append(self._send(self._packed(place, values, last), owner, TO_OWNER))
        return sending, receiving

    def _sum(self, array, k, mean):
        """Sum piece k of one's own slice, in the array, too; returns the message for all."""
        part, last = self._part(self._rank, k), k == self._pieces - 1
        n = part.stop - part.start
        places = [self._terms[rank][k % WINDOW] for rank in range(self._size)]
        terms = [place.values(n) for place in places]
        terms[self._rank] = self._wire.encode(terms[self._rank], array[part], part)
        if last:
            self._proof = self._proof.and_(*(Proof.read(places[rank].bytes) for rank in self._others))
        total = self._wire.sum(terms, self._total[:n])
        place = self._sums[k % WINDOW]
        divisor = np.float32(self._size if mean else 1)
        values = self._wire.result(place.values(n), array[part], total, divisor, part)
        message = self._packed(place, values, last)
        if last:
            self._proofs.append(Proof.read(place.bytes))
        return message

    def _hand_out(self, array, k, message):
        """Send the sums of piece k to all, and expect those of the other slices: requests."""
        receiving = []
        for owner in self._others:
            values, place = self._landing(array, owner, k)
            expected = place.message(values.size, True) if k == self._pieces - 1 else values
            receiving.append(self._comm.Irecv([expected, MPI.BYTE], owner, TO_ALL))
        return receiving + [self._send(message, rank, TO_ALL) for rank in self._others]

    def _take(self, array, k, requests):
        """Wait until piece k's sums are there, and have been sent; put them into the array."""
        MPI.Request.Waitall(requests)
        for owner in self._others:
            values, place = self._landing(array, owner, k)
            self._wire.decode(array[self._part(owner, k)], values)
            if k == self._pieces - 1:
                self._proofs.append(Proof.read(place.bytes))

    def _landing(self, array, owner, k):
        """(where the sums of piece k come from their owner, the Place that this may be in)."""
        place, part = self._coming[owner][k % WINDOW], self._part(owner, k)
        room = place.values(part.stop - part.start)
        return (room if k == self._pieces - 1 else self._wire.landing(room, array[part])), place

    def _packed(self, place, values, last):
        """What is sent: values, in the place or elsewhere; of a slice's last piece the place, with a proof."""
        if not last:
            return values
        return place.packed(values, self._proof.noting(self._rank, self._wire.overflow))

    def _send(self, message, rank, tag):
        self.sent += message.nbytes
        return self._comm.Isend([message, MPI.BYTE], rank, tag)
