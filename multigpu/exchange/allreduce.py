"""MPI's Allreduce; the MPI library chooses the algorithm and the order of the sum.

The header lanes are the last floats of the array and travel in the same call. MPI only sums, so the division for the
mean is a separate pass over the array.

If the arrays are on a GPU and the MPI library is CUDA-aware, MPI gets the GPU buffer. Otherwise it gets a host buffer.

Source: Ma et al. 2016, "Theano-MPI", section 3.2 (exchange strategies).
"""

import numpy as np

from multigpu.exchange.over_mpi import GpuStrategy, MpiStrategy
from multigpu.exchange.step_header import DIGITS, check_digits, write_digits
from multigpu.mpi.communicator import MPI, is_cuda_aware


def connect(config, device, comm, shapes, warn, step=0):
    """Return the strategy `ar` of this rank; see multigpu.exchange for the arguments. Collective."""
    if device.name != "cpu" and all(comm.mpi.allgather(is_cuda_aware())):
        if comm.rank == 0:
            warn(f"{device.name}'s arrays are exchanged by MPI itself, which is CUDA-aware")
        return GpuStrategy("ar", device, comm, shapes, lambda sums: comm.mpi.Allreduce(MPI.IN_PLACE, sums))
    return MpiStrategy(device, comm, shapes, warn, lambda n: Allreduce(comm.mpi), DIGITS)


class Allreduce:
    """Reduces arrays over the ranks of `comm`."""

    spare = DIGITS

    def __init__(self, comm):
        self._comm, self.sent = comm, 0

    def reduce(self, array, step, mean=True):
        """Replace the arrays of all ranks by their sum or mean. The last DIGITS floats are header lanes."""
        write_digits(array[-DIGITS:], step)
        self._comm.Allreduce(MPI.IN_PLACE, array)
        self.sent = array.nbytes
        check_digits(array[-DIGITS:], "ar", step, self._comm.size)
        if mean:
            np.divide(array, np.float32(self._comm.size), out=array)
