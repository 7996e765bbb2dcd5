"""Alltoall, sum, allgather: each rank sums one slice of the arrays of all ranks and sends the result to all ranks.

    asa32   s = x_0 + x_1 + ... + x_N-1 in float32, in rank order, then / N for the mean
    asa16   s = h(x_0) + h(x_1) + ... in float32, in rank order, then / N, then h(s)

where h rounds to float16, to nearest, ties to even. Each element is computed by one rank, which also uses the value
that it sends, so all ranks end with the same bits. For n floats on N ranks, each rank sends 2 (N - 1) / N * 4 n bytes
with asa32, and half of that with asa16.

Slices are transferred in pieces that fit into the cache. While one piece is summed, the next is transferred, and each
sum is sent immediately. Both directions of the link are therefore always busy:

    send piece k + 2 to its owner | sum piece k of own slice | send the sum of piece k - 1 to all

asa32 sends directly from the array and receives sums into it. The last piece of a slice is preceded by a StepHeader:
the sender's header on the way to the owner, and the owner's header, combined over all ranks, on the way back.

With error feedback, each rank adds its previous rounding error to the values that it sends next. Each owner does the
same with its sums:

    y = x + e,   send h(y),   e <- y - h(y)

The sum over all steps of the exchanged values then differs from the exact sum by at most the last rounding error,
independent of the number of steps. All e start at zero, also in a resumed run; this loses less than one rounding.

Source: Ma et al. 2016, "Theano-MPI", section 3.2 (exchange strategies); Seide et al. 2014 (error feedback).
"""

from functools import partial

import numpy as np

from multigpu.exchange import ExchangeSettings
from multigpu.exchange.codecs import Float16, Float32, MessageBuffer
from multigpu.exchange.over_mpi import MpiStrategy
from multigpu.exchange.step_header import StepHeader, check
from multigpu.mpi.communicator import MPI

PIECE = 1 << 18                                  # floats, 1 MiB
WINDOW = 2                                       # pieces in transfer at a time
TO_OWNER, TO_ALL = 1, 2                          # tags


def connect32(config, device, comm, shapes, warn, step=0):
    """Return the strategy asa32 of this rank; see multigpu.exchange for the arguments. Collective."""
    return MpiStrategy(device, comm, shapes, warn, lambda n: Asa("asa32", comm.mpi, n, Float32))


def connect16(config, device, comm, shapes, warn, step=0):
    """Return the strategy asa16 of this rank; see multigpu.exchange for the arguments. Collective."""
    wire = partial(Float16, config.section(ExchangeSettings).error_feedback)
    return MpiStrategy(device, comm, shapes, warn, lambda n: Asa("asa16", comm.mpi, n, wire))


class Asa:
    """Reduces arrays of `n` floats over the ranks of `comm`.

    name   of the strategy, for error messages
    wire   wire format: a function (n, slice that this rank owns) -> Float32 or Float16
    piece  floats per message
    """

    spare = 0

    def __init__(self, name, comm, n, wire, piece=PIECE):
        self._name, self._comm, self._rank, self._size = name, comm, comm.rank, comm.size
        self._others = [(comm.rank + i) % comm.size for i in range(1, comm.size)]     # not all start with rank 0
        self._ends = [n * rank // comm.size for rank in range(comm.size + 1)]
        longest = -(-n // comm.size)
        self._piece = min(piece, longest)
        self._pieces = -(-longest // self._piece)
        self._wire = wire(n, slice(*self._ends[comm.rank : comm.rank + 2]))
        self._total = np.empty(self._piece, np.float32)
        # message buffers to each owner and from each owner, and for the terms of own slice
        self._going, self._coming, self._terms = (
            {rank: self._places() for rank in range(comm.size)} for _ in range(3)
        )
        self._sums = self._places()
        self.sent = 0

    def _places(self):
        return [MessageBuffer(self._piece, self._wire.dtype) for _ in range(WINDOW)]

    def reduce(self, array, step, mean=True):
        """Replace the arrays of all ranks by their sum or mean."""
        self.sent, self._wire.overflow, self._proof, self._proofs = 0, None, StepHeader(step, step), []
        asked, handed = {}, {}
        for k in range(min(WINDOW, self._pieces)):
            asked[k] = self._ask(array, k)
        for k in range(self._pieces):
            sending, receiving = asked.pop(k)
            MPI.Request.Waitall(receiving)
            if k >= WINDOW:
                self._take(array, k - WINDOW, handed.pop(k - WINDOW))
            message = self._sum(array, k, mean)
            MPI.Request.Waitall(sending)         # before sums overwrite the memory that was sent
            handed[k] = self._hand_out(array, k, message)
            if k + WINDOW < self._pieces:
                asked[k + WINDOW] = self._ask(array, k + WINDOW)
        for k, requests in handed.items():
            self._take(array, k, requests)
        check(self._proofs, self._name, step, self._size)

    def _part(self, rank, k):
        """Return piece k of the slice of a rank; it may be empty."""
        first, end = self._ends[rank : rank + 2]
        return slice(min(first + k * self._piece, end), min(first + (k + 1) * self._piece, end))

    def _ask(self, array, k):
        """Start sending piece k of each other slice to its owner, and receiving piece k of own slice from each rank.

        Returns the send requests and the receive requests.
        """
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
        """Sum piece k of own slice, store the result in the array, and return the message for all ranks."""
        part, last = self._part(self._rank, k), k == self._pieces - 1
        n = part.stop - part.start
        places = [self._terms[rank][k % WINDOW] for rank in range(self._size)]
        terms = [place.values(n) for place in places]
        terms[self._rank] = self._wire.encode(terms[self._rank], array[part], part)
        if last:
            self._proof = self._proof.and_(*(StepHeader.read(places[rank].bytes) for rank in self._others))
        total = self._wire.sum(terms, self._total[:n])
        place = self._sums[k % WINDOW]
        divisor = np.float32(self._size if mean else 1)
        values = self._wire.result(place.values(n), array[part], total, divisor, part)
        message = self._packed(place, values, last)
        if last:
            self._proofs.append(StepHeader.read(place.bytes))
        return message

    def _hand_out(self, array, k, message):
        """Start sending the sum of piece k to all ranks and receiving the sums of the other slices.

        Returns the requests.
        """
        receiving = []
        for owner in self._others:
            values, place = self._landing(array, owner, k)
            expected = place.message(values.size, True) if k == self._pieces - 1 else values
            receiving.append(self._comm.Irecv([expected, MPI.BYTE], owner, TO_ALL))
        return receiving + [self._send(message, rank, TO_ALL) for rank in self._others]

    def _take(self, array, k, requests):
        """Wait for the requests of piece k, then write the received sums to the array."""
        MPI.Request.Waitall(requests)
        for owner in self._others:
            values, place = self._landing(array, owner, k)
            self._wire.decode(array[self._part(owner, k)], values)
            if k == self._pieces - 1:
                self._proofs.append(StepHeader.read(place.bytes))

    def _landing(self, array, owner, k):
        """Return the array that receives the sum of piece k from its owner, and its MessageBuffer.

        The array may be part of the MessageBuffer.
        """
        place, part = self._coming[owner][k % WINDOW], self._part(owner, k)
        room = place.values(part.stop - part.start)
        return (room if k == self._pieces - 1 else self._wire.landing(room, array[part])), place

    def _packed(self, place, values, last):
        """Return the data to send: the values, or for the last piece the whole message buffer with a header."""
        if not last:
            return values
        return place.packed(values, self._proof.noting(self._rank, self._wire.overflow))

    def _send(self, message, rank, tag):
        self.sent += message.nbytes
        return self._comm.Isend([message, MPI.BYTE], rank, tag)
