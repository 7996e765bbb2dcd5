"""A binary tree: partial sums go up to rank 0, which sends the result down the tree.

    copper     s_r = ((x_r + s_c1) + s_c2) + ...     over the children c1 < c2 < ... of rank r, in float32
    copper16   s_r = h(h(h(x_r) + s_c1) + s_c2) ...  where h rounds to float16, after each addition
    mean       s_0 / N at rank 0, before it is sent down; h(s_0 / N) for copper16

The tree is binomial and works for any N: the parent of a rank is the rank with its lowest set bit cleared. For 6 ranks:

    0 <- 1     2 <- 3     4 <- 5          then     0 <- 2          then     0 <- 4

Rank 0 computes the result for all ranks, so all ranks end with the same bits. Arrays are transferred in pieces, so
the levels of the tree work on different pieces concurrently. For n floats, a rank sends 4 n bytes to its parent and
to each child: at most 4 n log2 N, compared with less than 8 n for asa. For few ranks and for short arrays, copper
needs fewer messages.

The last piece is preceded by the StepHeader: on the way up it combines the ranks below, on the way down all ranks.

Source: Ma et al. 2016, "Theano-MPI", whose copper was written for 2, 4, 8 and 16 ranks.
"""

from functools import partial

import numpy as np

from multigpu.exchange.codecs import Float16, Float32, MessageBuffer
from multigpu.exchange.over_mpi import MpiStrategy
from multigpu.exchange.step_header import StepHeader, check
from multigpu.mpi.communicator import MPI

PIECE = 1 << 18                                  # floats, 1 MiB
UP, DOWN = 3, 4                                  # tags


def connect32(config, device, comm, shapes, warn, step=0):
    """Return the strategy copper of this rank; see multigpu.exchange for the arguments. Collective."""
    return MpiStrategy(device, comm, shapes, warn, lambda n: Copper("copper", comm.mpi, n, Float32))


def connect16(config, device, comm, shapes, warn, step=0):
    """Return the strategy copper16 of this rank; see multigpu.exchange for the arguments. Collective."""
    wire = partial(Float16, False)
    return MpiStrategy(device, comm, shapes, warn, lambda n: Copper("copper16", comm.mpi, n, wire))


def family(rank, size):
    """Return (parent, children) of a rank in the binomial tree of `size` ranks. The parent of rank 0 is None."""
    reach = rank & -rank if rank else size
    children, distance = [], 1
    while distance < reach and rank + distance < size:
        children.append(rank + distance)
        distance *= 2
    return (rank - reach if rank else None), children


class Copper:
    """Reduces arrays of `n` floats over the ranks of `comm`.

    name   of the strategy, for error messages
    wire   Float32 or Float16 of multigpu.exchange.codecs
    piece  floats per message
    """

    spare = 0

    def __init__(self, name, comm, n, wire, piece=PIECE):
        self._name, self._comm, self._rank, self._size, self._n = name, comm, comm.rank, comm.size, n
        self._parent, self._children = family(comm.rank, comm.size)
        self._piece = min(piece, n)
        self._pieces = -(-n // self._piece)
        self._ahead = 2 * (comm.size - 1).bit_length() + 2       # maximum pieces between sending up and receiving down
        self._wire = wire(n, slice(0, n))
        self._total = np.empty(self._piece, np.float32)
        self._terms = {rank: self._places() for rank in self._children}
        self._sums, self._results = self._places(), self._places()
        self.sent = 0

    def _places(self):
        return [MessageBuffer(self._piece, self._wire.dtype) for _ in range(self._ahead)]

    def reduce(self, array, step, mean=True):
        """Replace the arrays of all ranks by their sum or mean."""
        self.sent, self._wire.overflow, self._proof = 0, None, StepHeader(step, step)
        divisor = np.float32(self._size if mean else 1)
        terms, going_up, going_down = {}, {}, {}
        for k in range(min(self._ahead, self._pieces)):
            terms[k] = self._expect(k)
        for k in range(self._pieces + self._ahead):
            if k >= self._ahead:
                MPI.Request.Waitall(going_up.pop(k - self._ahead))
                MPI.Request.Waitall(going_down.pop(k - 2 * self._ahead, []))
                going_down[k - self._ahead] = self._bring_down(array, k - self._ahead)
            if k < self._pieces:
                MPI.Request.Waitall(terms.pop(k))
                going_up[k] = self._sum_up(array, k, divisor)
            if k + self._ahead < self._pieces:
                terms[k + self._ahead] = self._expect(k + self._ahead)
        for requests in going_down.values():
            MPI.Request.Waitall(requests)
        check([self._proof], self._name, step, self._size)

    def _part(self, k):
        return slice(k * self._piece, min((k + 1) * self._piece, self._n))

    def _last(self, k):
        return k == self._pieces - 1

    def _expect(self, k):
        """Start receiving piece k from the children; returns the requests."""
        part = self._part(k)
        return [
            self._comm.Irecv(places[k % self._ahead].message(part.stop - part.start, self._last(k)), child, UP)
            for child, places in self._terms.items()
        ]

    def _sum_up(self, array, k, divisor):
        """Add piece k of the children to own piece and start sending it up, or down from rank 0.

        Returns the requests.
        """
        part, place = self._part(k), self._sums[k % self._ahead]
        own, total = array[part], self._total[: part.stop - part.start]
        message = self._wire.encode(place.values(total.size), own, part)
        for child in self._children:
            term = self._terms[child][k % self._ahead]
            total = self._wire.sum([message, term.values(total.size)], total)
            message = self._wire.result(place.values(total.size), own, total, np.float32(1), part)
            if self._last(k):
                self._proof = self._proof.and_(StepHeader.read(term.bytes))
        if self._parent is None:
            message = self._wire.result(
                place.values(total.size), own, self._wire.sum([message], total), divisor, part
            )
        if self._last(k):
            self._proof = self._proof.noting(self._rank, self._wire.overflow)
            message = place.packed(message, self._proof)
        if self._parent is None:
            return self._send(message, self._children, DOWN)
        return self._send(message, [self._parent], UP)

    def _bring_down(self, array, k):
        """Receive the result of piece k, write it to the array and start sending it to the children.

        Returns the requests.
        """
        if self._parent is None:
            return []
        part, place = self._part(k), self._results[k % self._ahead]
        room = place.values(part.stop - part.start)
        landing = room if self._last(k) else self._wire.landing(room, array[part])
        message = place.message(room.size, True) if self._last(k) else landing
        self._comm.Recv([message, MPI.BYTE], self._parent, DOWN)
        requests = self._send(message, self._children, DOWN)
        self._wire.decode(array[part], landing)
        if self._last(k):
            self._proof = StepHeader.read(place.bytes)
        return requests

    def _send(self, message, ranks, tag):
        self.sent += message.nbytes * len(ranks)
        return [self._comm.Isend([message, MPI.BYTE], rank, tag) for rank in ranks]
