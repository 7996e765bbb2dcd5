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

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from alexnet.config import Section
from multigpu.exchange.base import STRATEGIES, ExchangeContext
from multigpu.exchange.codecs import Codec, Float16Codec, Float32Codec, MessageBuffer
from multigpu.exchange.mpi_strategy import ReductionStrategy
from multigpu.exchange.reduction import PIECE, Reduction
from multigpu.exchange.step_header import StepHeader
from multigpu.mpi.requests import wait

if TYPE_CHECKING:
    from multigpu.mpi.communicator import MPI

WINDOW = 2                                       # pieces in transfer at a time
TO_OWNER = 1                                     # tag of the messages with terms
TO_ALL = 2                                       # tag of the messages with sums


class Asa16Settings(Section):
    """Whether asa16 sends rounding errors later."""

    error_feedback: bool


@STRATEGIES.register("asa32")
class Asa32(ReductionStrategy):
    """Each rank sums a slice; messages are float32."""

    preference = 1

    def reduction(self, context: ExchangeContext) -> Reduction:
        return AsaReduction("asa32", self.comm.mpi, self.flat.size, Float32Codec)


@STRATEGIES.register("asa16")
class Asa16(ReductionStrategy):
    """Each rank sums a slice; messages are float16."""

    settings = (Asa16Settings,)

    def reduction(self, context: ExchangeContext) -> Reduction:
        codec = partial(Float16Codec, feedback=context.config.section(Asa16Settings).error_feedback)
        return AsaReduction("asa16", self.comm.mpi, self.flat.size, codec)


class AsaReduction(Reduction):
    """Reduces arrays of `n` floats: alltoall, sum, allgather.

    Args:
        name, comm: see Reduction.
        n: number of floats.
        codec: function of n and the slice that this rank sums.
        piece: floats per message.
    """

    def __init__(
        self, name: str, comm: MPI.Intracomm, n: int, codec: Callable[[int, slice], Codec], piece: int = PIECE
    ):
        self._ends = [n * rank // comm.size for rank in range(comm.size + 1)]
        super().__init__(name, comm, codec(n, slice(*self._ends[comm.rank : comm.rank + 2])))
        self._others = [(comm.rank + i) % comm.size for i in range(1, comm.size)]     # not all start with rank 0
        longest_slice = -(-n // comm.size)
        self._piece = min(piece, longest_slice)
        self._n_pieces = -(-longest_slice // self._piece)
        self._total = np.empty(self._piece, np.float32)
        self._to_owner = {rank: self._message_buffers() for rank in range(comm.size)}
        self._from_owner = {rank: self._message_buffers() for rank in range(comm.size)}
        self._terms = {rank: self._message_buffers() for rank in range(comm.size)}      # of this rank's slice
        self._sums = self._message_buffers()                                            # of this rank's slice

    def _message_buffers(self) -> list[MessageBuffer]:
        return [MessageBuffer(self._piece, self._codec.dtype) for _ in range(WINDOW)]

    def _reduce(self, array: np.ndarray, header: StepHeader, divisor: np.float32) -> list[StepHeader]:
        self._header = header
        self._combined_headers: list[StepHeader] = []
        terms: dict[int, tuple[list[MPI.Request], list[MPI.Request]]] = {}       # by piece
        sums: dict[int, list[MPI.Request]] = {}
        for k in range(min(WINDOW, self._n_pieces)):
            terms[k] = self._exchange_terms(array, k)
        for k in range(self._n_pieces):
            sending, receiving = terms.pop(k)
            wait(receiving)
            if k >= WINDOW:
                self._finish_sums(array, k - WINDOW, sums.pop(k - WINDOW))
            message = self._sum(array, k, divisor)
            wait(sending)                        # before sums overwrite the memory that was sent
            sums[k] = self._exchange_sums(array, k, message)
            if k + WINDOW < self._n_pieces:
                terms[k + WINDOW] = self._exchange_terms(array, k + WINDOW)
        for k, requests in sums.items():
            self._finish_sums(array, k, requests)
        return self._combined_headers

    def _part(self, rank: int, k: int) -> slice:
        """Return piece k of the slice of a rank; it may be empty."""
        first, end = self._ends[rank : rank + 2]
        return slice(min(first + k * self._piece, end), min(first + (k + 1) * self._piece, end))

    def _is_last(self, k: int) -> bool:
        return k == self._n_pieces - 1

    def _exchange_terms(self, array: np.ndarray, k: int) -> tuple[list[MPI.Request], list[MPI.Request]]:
        """Start sending piece k of each other slice to its owner, and receiving piece k of own slice from each rank.

        Returns:
            the send requests and the receive requests.
        """
        own, last = self._part(self._rank, k), self._is_last(k)
        receiving = [
            self._receive(self._terms[rank][k % WINDOW].message(own.stop - own.start, last), rank, TO_OWNER)
            for rank in self._others
        ]
        sending = []
        for owner in self._others:
            buffer, part = self._to_owner[owner][k % WINDOW], self._part(owner, k)
            values = self._codec.encode(buffer.values(part.stop - part.start), array[part], part)
            sending.append(self._send(self._message(buffer, values, last), owner, TO_OWNER))
        return sending, receiving

    def _sum(self, array: np.ndarray, k: int, divisor: np.float32) -> np.ndarray:
        """Sum piece k of own slice, store the result in the array, and return the message for all ranks."""
        part, last = self._part(self._rank, k), self._is_last(k)
        n = part.stop - part.start
        buffers = [self._terms[rank][k % WINDOW] for rank in range(self._size)]
        terms = [buffer.values(n) for buffer in buffers]
        terms[self._rank] = self._codec.encode(terms[self._rank], array[part], part)
        if last:
            self._header = self._header.combine(*(StepHeader.read(buffers[rank].bytes) for rank in self._others))
        total = self._codec.sum(terms, self._total[:n])
        buffer = self._sums[k % WINDOW]
        values = self._codec.finish(buffer.values(n), array[part], total, divisor, part)
        message = self._message(buffer, values, last)
        if last:
            self._combined_headers.append(StepHeader.read(buffer.bytes))
        return message

    def _exchange_sums(self, array: np.ndarray, k: int, message: np.ndarray) -> list[MPI.Request]:
        """Start sending the sum of piece k to all ranks and receiving the sums of the other slices.

        Returns:
            the requests.
        """
        receiving = []
        for owner in self._others:
            values, buffer = self._receive_buffer(array, owner, k)
            expected = buffer.message(values.size, True) if self._is_last(k) else values
            receiving.append(self._receive(expected, owner, TO_ALL))
        return receiving + [self._send(message, rank, TO_ALL) for rank in self._others]

    def _finish_sums(self, array: np.ndarray, k: int, requests: list[MPI.Request]) -> None:
        """Wait for the requests of piece k, then write the received sums to the array."""
        wait(requests)
        for owner in self._others:
            values, buffer = self._receive_buffer(array, owner, k)
            self._codec.decode(array[self._part(owner, k)], values)
            if self._is_last(k):
                self._combined_headers.append(StepHeader.read(buffer.bytes))

    def _receive_buffer(self, array: np.ndarray, owner: int, k: int) -> tuple[np.ndarray, MessageBuffer]:
        """Return the array that receives the sum of piece k from its owner, and its MessageBuffer.

        The array may be part of the MessageBuffer.
        """
        buffer, part = self._from_owner[owner][k % WINDOW], self._part(owner, k)
        scratch = buffer.values(part.stop - part.start)
        return (scratch if self._is_last(k) else self._codec.receive_buffer(scratch, array[part])), buffer

    def _message(self, buffer: MessageBuffer, values: np.ndarray, last: bool) -> np.ndarray:
        """Return the data to send: the values, or for the last piece the whole message buffer with a header."""
        if not last:
            return values
        return buffer.pack(values, self._header.with_overflow(self._rank, self._codec.overflow))
