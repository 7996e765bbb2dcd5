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

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from multigpu.exchange.base import STRATEGIES, ExchangeContext
from multigpu.exchange.codecs import Codec, Float16Codec, Float32Codec, MessageBuffer
from multigpu.exchange.mpi_strategy import ReductionStrategy
from multigpu.exchange.reduction import PIECE, Reduction
from multigpu.exchange.step_header import StepHeader
from multigpu.mpi.requests import wait

if TYPE_CHECKING:
    from multigpu.mpi.communicator import MPI

UP = 3                                           # tag of the messages with partial sums
DOWN = 4                                         # tag of the messages with results


@STRATEGIES.register("copper")
class Copper32(ReductionStrategy):
    """Partial sums over a tree; messages are float32."""

    def reduction(self, context: ExchangeContext) -> Reduction:
        return CopperReduction("copper", self.comm.mpi, self.flat.size, Float32Codec)


@STRATEGIES.register("copper16")
class Copper16(ReductionStrategy):
    """Partial sums over a tree; messages are float16."""

    def reduction(self, context: ExchangeContext) -> Reduction:
        return CopperReduction("copper16", self.comm.mpi, self.flat.size, Float16Codec)


def parent_and_children(rank: int, size: int) -> tuple[int | None, list[int]]:
    """Return the parent and the children of a rank in the binomial tree of `size` ranks. Rank 0 has no parent."""
    distance_to_parent = rank & -rank if rank else size
    children = []
    distance = 1
    while distance < distance_to_parent and rank + distance < size:
        children.append(rank + distance)
        distance *= 2
    return (rank - distance_to_parent if rank else None), children


class CopperReduction(Reduction):
    """Reduces arrays of `n` floats over a binary tree.

    Args:
        name, comm: see Reduction.
        n: number of floats.
        codec: function of n and the slice that this rank sums, here the whole array.
        piece: floats per message.
    """

    def __init__(
        self, name: str, comm: MPI.Intracomm, n: int, codec: Callable[[int, slice], Codec], piece: int = PIECE
    ):
        super().__init__(name, comm, codec(n, slice(0, n)))
        self._n = n
        self._parent, self._children = parent_and_children(comm.rank, comm.size)
        self._piece = min(piece, n)
        self._n_pieces = -(-n // self._piece)
        self._window = 2 * (comm.size - 1).bit_length() + 2      # maximum pieces between sending up and receiving down
        self._total = np.empty(self._piece, np.float32)
        self._terms = {rank: self._message_buffers() for rank in self._children}
        self._sums = self._message_buffers()
        self._results = self._message_buffers()

    def _message_buffers(self) -> list[MessageBuffer]:
        return [MessageBuffer(self._piece, self._codec.dtype) for _ in range(self._window)]

    def _reduce(self, array: np.ndarray, header: StepHeader, divisor: np.float32) -> list[StepHeader]:
        self._header = header
        terms: dict[int, list[MPI.Request]] = {}                 # by piece
        sent_up: dict[int, list[MPI.Request]] = {}
        sent_down: dict[int, list[MPI.Request]] = {}
        for k in range(min(self._window, self._n_pieces)):
            terms[k] = self._receive_terms(k)
        for k in range(self._n_pieces + self._window):
            if k >= self._window:
                wait(sent_up.pop(k - self._window))
                wait(sent_down.pop(k - 2 * self._window, []))
                sent_down[k - self._window] = self._send_down(array, k - self._window)
            if k < self._n_pieces:
                wait(terms.pop(k))
                sent_up[k] = self._send_up(array, k, divisor)
            if k + self._window < self._n_pieces:
                terms[k + self._window] = self._receive_terms(k + self._window)
        for requests in sent_down.values():
            wait(requests)
        return [self._header]

    def _part(self, k: int) -> slice:
        return slice(k * self._piece, min((k + 1) * self._piece, self._n))

    def _is_last(self, k: int) -> bool:
        return k == self._n_pieces - 1

    def _receive_terms(self, k: int) -> list[MPI.Request]:
        """Start receiving piece k from the children; returns the requests."""
        part = self._part(k)
        return [
            self._receive(buffers[k % self._window].message(part.stop - part.start, self._is_last(k)), child, UP)
            for child, buffers in self._terms.items()
        ]

    def _send_up(self, array: np.ndarray, k: int, divisor: np.float32) -> list[MPI.Request]:
        """Add piece k of the children to own piece and start sending it up, or down from rank 0.

        Returns:
            the requests.
        """
        part, buffer = self._part(k), self._sums[k % self._window]
        n = part.stop - part.start
        own, total, scratch = array[part], self._total[:n], buffer.values(n)
        message = self._codec.encode(scratch, own, part)
        for child in self._children:
            term = self._terms[child][k % self._window]
            total = self._codec.sum([message, term.values(n)], total)
            message = self._codec.finish(scratch, own, total, np.float32(1), part)
            if self._is_last(k):
                self._header = self._header.combine(StepHeader.read(term.bytes))
        if self._parent is None:
            message = self._codec.finish(scratch, own, self._codec.sum([message], total), divisor, part)
        if self._is_last(k):
            self._header = self._header.with_overflow(self._rank, self._codec.overflow)
            message = buffer.pack(message, self._header)
        if self._parent is None:
            return [self._send(message, child, DOWN) for child in self._children]
        return [self._send(message, self._parent, UP)]

    def _send_down(self, array: np.ndarray, k: int) -> list[MPI.Request]:
        """Receive the result of piece k, write it to the array and start sending it to the children.

        Returns:
            the requests.
        """
        if self._parent is None:
            return []
        part, buffer = self._part(k), self._results[k % self._window]
        scratch = buffer.values(part.stop - part.start)
        if self._is_last(k):
            received = scratch
            message = buffer.message(scratch.size, True)
        else:
            received = message = self._codec.receive_buffer(scratch, array[part])
        self._receive(message, self._parent, DOWN).Wait()
        requests = [self._send(message, child, DOWN) for child in self._children]
        self._codec.decode(array[part], received)
        if self._is_last(k):
            self._header = StepHeader.read(buffer.bytes)
        return requests
