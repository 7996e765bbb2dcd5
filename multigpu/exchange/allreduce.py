"""MPI's Allreduce; the MPI library chooses the algorithm and the order of the sum.

The header lanes are the last floats of the array and travel in the same call. MPI only sums, so the division for the
mean is a separate pass over the array.

If the arrays are on a GPU and the MPI library is CUDA-aware, MPI gets the GPU buffer. Otherwise it gets a host buffer.

Source: Ma et al. 2016, "Theano-MPI", section 3.2 (exchange strategies).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from multigpu.device.cuda_array import CudaArray
from multigpu.exchange.base import STRATEGIES, ExchangeContext, Strategy
from multigpu.exchange.mpi_strategy import GpuStrategy, MpiStrategy
from multigpu.exchange.step_header import LANES, check_lanes, write_lanes
from multigpu.mpi.requests import in_main_thread, wait

if TYPE_CHECKING:
    from multigpu.mpi.communicator import MPI


@STRATEGIES.register("ar")
class Allreduce(MpiStrategy):
    """MPI sums host memory."""

    extra_floats = LANES

    def __init__(self, context: ExchangeContext):
        super().__init__(context)
        self._reduction = AllreduceReduction(self.comm.mpi)

    @classmethod
    def connect(cls, context: ExchangeContext) -> Strategy:
        """Open the strategy; it is a GpuAllreduce if MPI can access the GPU on every rank."""
        from multigpu.mpi.communicator import is_cuda_aware  # initialises MPI, so only in a job

        device, comm = context.device, context.comm
        if device.name == "cpu" or not everywhere(comm.mpi, is_cuda_aware()):
            return cls(context)
        if comm.rank == 0:
            context.warn(f"{device.name}'s arrays are exchanged by MPI itself, which is CUDA-aware")
        return GpuAllreduce("ar", context)

    def reduce(self, array: np.ndarray, step: int) -> None:
        self._reduction.reduce(array, step)


class GpuAllreduce(GpuStrategy):
    """A CUDA-aware MPI sums GPU memory."""

    @classmethod
    def connect(cls, context: ExchangeContext) -> Strategy:
        return cls("ar", context)

    def sum(self, memory: CudaArray, step: int) -> None:
        allreduce_in_place(self.comm.mpi, memory)


class AllreduceReduction:
    """Reduces arrays over the ranks of `comm`; the counterpart of multigpu.exchange.reduction.Reduction."""

    def __init__(self, comm: MPI.Intracomm):
        self._comm = comm
        self.sent = 0

    def reduce(self, array: np.ndarray, step: int, mean: bool = True) -> None:
        """Replace the arrays of all ranks by their mean or sum. The last LANES floats are header lanes."""
        write_lanes(array[-LANES:], step)
        allreduce_in_place(self._comm, array)
        self.sent = array.nbytes
        check_lanes(array[-LANES:], "ar", step, self._comm.size)
        if mean:
            np.divide(array, np.float32(self._comm.size), out=array)


def everywhere(comm: MPI.Intracomm, value: bool) -> bool:
    """Return whether the value is true on all ranks. Collective."""
    ones = np.array([value], np.int32)
    allreduce_in_place(comm, ones)
    return int(ones[0]) == comm.size


def allreduce_in_place(comm: MPI.Intracomm, array: np.ndarray | CudaArray) -> None:
    """Replace the arrays of all ranks by their sum."""
    from multigpu.mpi.communicator import MPI  # initialises MPI, so only in a job

    if in_main_thread():
        comm.Allreduce(MPI.IN_PLACE, array)
    else:
        wait([comm.Iallreduce(MPI.IN_PLACE, array)])
