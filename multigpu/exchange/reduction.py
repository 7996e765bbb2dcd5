"""Sums and means of arrays over the ranks of an MPI job, by messages that carry a StepHeader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from multigpu.exchange.codecs import Codec
from multigpu.exchange.step_header import StepHeader, check_headers

if TYPE_CHECKING:
    from multigpu.mpi.communicator import MPI

PIECE = 1 << 18                                  # floats per message, 1 MiB


class Reduction(ABC):
    """Reduces arrays of one length.

    Args:
        name: of the strategy, for error messages.
        comm: mpi4py communicator of the ranks.
        codec: converts values to and from what is sent.

    Attributes:
        sent: bytes that this rank passed to MPI in the last reduce().
    """

    def __init__(self, name: str, comm: MPI.Intracomm, codec: Codec):
        self._name = name
        self._comm = comm
        self._codec = codec
        self._rank = comm.rank
        self._size = comm.size
        self.sent = 0

    def reduce(self, array: np.ndarray, step: int, mean: bool = True) -> None:
        """Replace the float32 arrays of all ranks by their mean or sum, bit-identical in all of them. Collective.

        Raises:
            DesyncError: the received data cannot come from all ranks at this step.
            Overflow: a value does not fit into float16.
        """
        self.sent = 0
        self._codec.overflow = None
        headers = self._reduce(array, StepHeader(step, step), np.float32(self._size if mean else 1))
        check_headers(headers, self._name, step, self._size)

    @abstractmethod
    def _reduce(self, array: np.ndarray, header: StepHeader, divisor: np.float32) -> list[StepHeader]:
        """Replace the arrays of all ranks by their sum divided by the divisor.

        Args:
            header: of this rank.

        Returns:
            the headers that are each combined over all ranks.
        """

    def _send(self, message: np.ndarray, rank: int, tag: int) -> MPI.Request:
        self.sent += message.nbytes
        return self._comm.Isend(message.view(np.uint8), rank, tag)

    def _receive(self, message: np.ndarray, rank: int, tag: int) -> MPI.Request:
        return self._comm.Irecv(message.view(np.uint8), rank, tag)
