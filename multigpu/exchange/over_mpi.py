"""What all strategies over MPI share: a flat buffer, and its way to where MPI can read it.

A reduction works on an array of the host, in place:

    reduction.reduce(array, step, mean=True)      float32; becomes the sum over all ranks, or their mean
    reduction.sent                                bytes that the last one has handed to MPI, or to NCCL, on this rank
    reduction.spare                               floats at the array's end that are its own

Raises OutOfStep where what came cannot be what all ranks have sent in this step; Overflow.

The host's buffer is that array.  A GPU's is copied to page-locked memory of the host and back.
"""

import numpy as np

from multigpu.exchange import Strategy
from multigpu.exchange.flat import Flat
from multigpu.exchange.proof import DIGITS, check_digits, write_digits


class OverMpi(Strategy):
    """What a rule is handed: a reduction of the flat buffer, on the host.

    device, partners, shapes, warn  of connect(), as multigpu.exchange says
    reduction                       (floats) -> one that reduces arrays of so many, the `spare` at the end included
    """

    def __init__(self, device, partners, shapes, warn, reduction, spare=0):
        if device.name != "cpu" and partners.rank == 0:
            warn(f"{device.name}'s arrays are exchanged over MPI by way of page-locked memory of the host")
        self.device, self.flat, self._partners = device, new_flat(device, shapes, spare), partners
        n = self.flat.buffer.nbytes // 4
        self.reduction = reduction(n)
        self._array = device.staging(self.flat.buffer, (n,), np.float32)

    def average(self, step):
        self.reduce(step)

    def reduce(self, step, mean=True):
        """Replace the buffers of all ranks by their mean, or by their sum; as average()."""
        self.device.download(self._array, self.flat.buffer)
        with self._partners.waiting():
            self.reduction.reduce(self._array, step, mean)
        self.device.upload(self.flat.buffer, self._array)
        self.device.synchronise()

    def close(self):
        self._array = None
        self.flat.close()


class OnGpu(Strategy):
    """What a rule is handed: a sum that a library makes in the GPUs' own memory.

    name    of the strategy
    add_up  (Memory) -> None, which has the ranks' float32 there become their sum
    """

    def __init__(self, name, device, partners, shapes, add_up):
        self.device, self.flat = device, new_flat(device, shapes, DIGITS)
        self._name, self._partners, self._add_up = name, partners, add_up
        self._n = self.flat.buffer.nbytes // 4
        self._digits = self.flat.buffer.part(4 * (self._n - DIGITS), 4 * DIGITS)

    def average(self, step):
        self.reduce(step)

    def reduce(self, step, mean=True):
        """Replace the buffers of all ranks by their mean, or by their sum; as average()."""
        digits = np.empty(DIGITS, np.float32)
        write_digits(digits, step)
        self.device.upload(self._digits, digits)
        self.device.synchronise()
        with self._partners.waiting():
            self._add_up(Memory(self.flat.buffer, self._n))
        self.device.download(digits, self._digits)
        check_digits(digits, self._name, step, self._partners.size)
        if mean:
            self.device.upload(self.flat.buffer, self.flat.array() / np.float32(self._partners.size))
            self.device.synchronise()

    def close(self):
        self.flat.close()


def new_flat(device, shapes, spare):
    """A Flat of zeros: the gaps between its arrays travel, too, and a GPU's new memory holds anything."""
    flat = Flat(device, shapes, spare)
    if device.name != "cpu":
        device.upload(flat.buffer, np.zeros(flat.buffer.nbytes // 4, np.float32))
        device.synchronise()
    return flat


class Memory:
    """The first `n` numbers of a GPU's buffer, as MPI and NCCL take them: __cuda_array_interface__, version 3."""

    def __init__(self, buffer, n, dtype=np.float32):
        self.__cuda_array_interface__ = {
            "version": 3, "data": (buffer.pointer, False), "shape": (n,), "typestr": np.dtype(dtype).str,
            "strides": None, "stream": None,     # the device is synchronised before
        }  # fmt: skip
