"""Common base of the strategies over MPI: a flat buffer, and its transfer to memory that MPI can access.

A reduction works in place on a host array:

    reduction.reduce(array, step, mean=True)      replaces a float32 array by its sum or mean over all ranks
    reduction.sent                                bytes that this rank passed to MPI or NCCL in the last call
    reduction.spare                               number of floats at the end of the array reserved for the reduction

reduce() raises DesyncError if the received data cannot come from all ranks at this step, and Overflow.

A host buffer is used directly as that array. A GPU buffer is copied to page-locked host memory and back.
"""

import numpy as np

from multigpu.exchange import Strategy
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.step_header import DIGITS, check_digits, write_digits


class MpiStrategy(Strategy):
    """Strategy that reduces the flat buffer on the host.

    device, comm, shapes, warn  see connect() in multigpu.exchange
    reduction                       (n) -> reduction of arrays of n floats, including the `spare` floats at the end
    """

    def __init__(self, device, comm, shapes, warn, reduction, spare=0):
        if device.name != "cpu" and comm.rank == 0:
            warn(f"{device.name}'s arrays are exchanged over MPI by way of page-locked memory of the host")
        self.device, self.flat, self._comm = device, new_flat(device, shapes, spare), comm
        n = self.flat.buffer.nbytes // 4
        self.reduction = reduction(n)
        self._array = device.staging(self.flat.buffer, (n,), np.float32)

    def average(self, step):
        self.reduce(step)

    def reduce(self, step, mean=True):
        """Replace the buffers of all ranks by their mean or sum; see average()."""
        self.device.download(self._array, self.flat.buffer)
        with self._comm.waiting():
            self.reduction.reduce(self._array, step, mean)
        self.device.upload(self.flat.buffer, self._array)
        self.device.synchronise()

    def close(self):
        self._array = None
        self.flat.close()


class GpuStrategy(Strategy):
    """Strategy whose sum is computed by a library in GPU memory.

    name    of the strategy
    add_up  (GpuArrayInterface) -> None, replaces the float32 values of all ranks by their sum
    """

    def __init__(self, name, device, comm, shapes, add_up):
        self.device, self.flat = device, new_flat(device, shapes, DIGITS)
        self._name, self._comm, self._add_up = name, comm, add_up
        self._n = self.flat.buffer.nbytes // 4
        self._digits = self.flat.buffer.part(4 * (self._n - DIGITS), 4 * DIGITS)

    def average(self, step):
        self.reduce(step)

    def reduce(self, step, mean=True):
        """Replace the buffers of all ranks by their mean or sum; see average()."""
        digits = np.empty(DIGITS, np.float32)
        write_digits(digits, step)
        self.device.upload(self._digits, digits)
        self.device.synchronise()
        with self._comm.waiting():
            self._add_up(GpuArrayInterface(self.flat.buffer, self._n))
        self.device.download(digits, self._digits)
        check_digits(digits, self._name, step, self._comm.size)
        if mean:
            self.device.upload(self.flat.buffer, self.flat.array() / np.float32(self._comm.size))
            self.device.synchronise()

    def close(self):
        self.flat.close()


def new_flat(device, shapes, spare):
    """Return a FlatBuffer filled with zeros.

    The gaps between its arrays are transferred, too, and new GPU memory is uninitialised.
    """
    flat = FlatBuffer(device, shapes, spare)
    if device.name != "cpu":
        device.upload(flat.buffer, np.zeros(flat.buffer.nbytes // 4, np.float32))
        device.synchronise()
    return flat


class GpuArrayInterface:
    """The first `n` values of a GPU buffer as __cuda_array_interface__, version 3, for MPI and NCCL."""

    def __init__(self, buffer, n, dtype=np.float32):
        self.__cuda_array_interface__ = {
            "version": 3, "data": (buffer.pointer, False), "shape": (n,), "typestr": np.dtype(dtype).str,
            "strides": None, "stream": None,     # the caller has synchronised the device
        }
