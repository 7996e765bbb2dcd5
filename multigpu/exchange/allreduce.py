"""MPI's own Allreduce, in whatever order and by whatever way the MPI library chooses.

The Digits that prove it are the last floats of the array, and so in the same call.  The sum is MPI's, so dividing it
for the mean is a pass of its own over the array.

Where the arrays lie on a GPU and the MPI library is CUDA-aware, it is handed the GPU's memory; else the host's.

Source: Ma et al. 2016, "Theano-MPI", section 3.2 (exchange strategies).
"""

import numpy as np

from multigpu.exchange.over_mpi import OnGpu, OverMpi
from multigpu.exchange.proof import DIGITS, check_digits, write_digits
from multigpu.mpi import MPI, is_cuda_aware


def connect(config, device, partners, shapes, warn, step=0):
    """ar of this rank with its partners, as multigpu.exchange says; all of them call it."""
    if device.name != "cpu" and all(partners.comm.allgather(is_cuda_aware())):
        if partners.rank == 0:
            warn(f"{device.name}'s arrays are exchanged by MPI itself, which is CUDA-aware")
        return OnGpu("ar", device, partners, shapes, lambda sums: partners.comm.Allreduce(MPI.IN_PLACE, sums))
    return OverMpi(device, partners, shapes, warn, lambda n: Allreduce(partners.comm), DIGITS)


class Allreduce:
    """The reduction of arrays among the ranks of `comm`."""

    spare = DIGITS

    def __init__(self, comm):
        self._comm, self.sent = comm, 0

    def reduce(self, array, step, mean=True):
        """Replace the arrays of all ranks by their sum, or their mean; the last DIGITS floats are not theirs."""
        write_digits(array[-DIGITS:], step)
        self._comm.Allreduce(MPI.IN_PLACE, array)
        self.sent = array.nbytes
        check_digits(array[-DIGITS:], "ar", step, self._comm.size)
        if mean:
            np.divide(array, np.float32(self._comm.size), out=array)
