"""Bases of the strategies over MPI: a flat buffer, and its transfer to memory that MPI or NCCL can access.

A strategy that averages arrays in host memory implements one method:

    @STRATEGIES.register("gather")
    class Gather(MpiStrategy):
        def reduce(self, array, step):
            arrays = np.empty((self.comm.size, array.size), np.float32)
            self.comm.mpi.Allgather(array, arrays)
            np.mean(arrays, axis=0, out=array)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from multigpu.device.cuda_array import CudaArray
from multigpu.exchange.base import ExchangeContext, Strategy
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.reduction import Reduction
from multigpu.exchange.step_header import HEADER_BYTES, LANES, StepHeader, check_headers, check_lanes, write_lanes
from multigpu.mpi.requests import wait

if TYPE_CHECKING:
    from multigpu.device import Buffer, Device
    from multigpu.mpi.communicator import MPI


class MpiStrategy(Strategy):
    """Averages in host memory.

    A buffer in host memory is used directly. A GPU buffer is copied to page-locked host memory and back.

    Attributes:
        comm: the communicator; comm.mpi is mpi4py's.
    """

    overlaps = True
    gathers = True
    extra_floats: ClassVar[int] = 0                       # at the end of the array, for the use of reduce()

    def __init__(self, context: ExchangeContext):
        device = context.device
        self.comm = context.comm
        if device.name != "cpu" and self.comm.rank == 0:
            context.warn(f"{device.name}'s arrays are exchanged over MPI by way of page-locked memory of the host")
        super().__init__(zeroed_flat_buffer(device, context.shapes, self.extra_floats))
        self._array: np.ndarray = device.staging(self.flat.buffer, (self.flat.size,), np.float32)
        self._gathered: AllgatherBuffers | None = None

    @classmethod
    def connect(cls, context: ExchangeContext) -> Strategy:
        return cls(context)

    @abstractmethod
    def reduce(self, array: np.ndarray, step: int) -> None:
        """Replace a float32 array by its mean over all ranks, bit-identical in all of them. Collective.

        Args:
            array: shape (flat.size,), in host memory.

        Raises:
            DesyncError, Overflow: see average().
        """

    def average(self, step: int) -> None:
        self.device.download(self._array, self.flat.buffer)
        with self.comm.waiting():
            self.reduce(self._array, step)
        self.device.upload(self.flat.buffer, self._array)
        self.device.synchronise()

    def gather(self, step: int) -> list[list[np.ndarray]]:
        self.device.download(self._array, self.flat.buffer)
        if self._gathered is None:
            self._gathered = AllgatherBuffers(self.comm.mpi, self.device, self.flat.size)
        with self.comm.waiting():
            buffers = self._gathered.gather(self._array, step)
        self.device.synchronise()
        return [self.flat.arrays(buffer) for buffer in buffers]

    def close(self) -> None:
        del self._array                          # a view would keep host memory mapped
        self.flat.close()


class AllgatherBuffers:
    """Copies of an array of each rank, on the device.

    Args:
        size: floats of the array.
    """

    def __init__(self, comm: MPI.Intracomm, device: Device, size: int):
        self._comm = comm
        self._device = device
        self._message = np.empty(size + HEADER_BYTES // 4, np.float32)
        self._messages = np.empty((comm.size, self._message.size), np.float32)
        self._buffers = [device.allocate(4 * size) for _ in range(comm.size)]

    def gather(self, array: np.ndarray, step: int) -> list[Buffer]:
        """Return a buffer for each rank with its array.

        Raises:
            DesyncError: a rank is at another step.
        """
        self._message[: array.size] = array
        StepHeader(step, step).write(self._message[array.size :].view(np.uint8))
        wait([self._comm.Iallgather(self._message, self._messages)])
        headers = [StepHeader.read(message[array.size :].view(np.uint8)) for message in self._messages]
        check_headers([headers[0].combine(*headers[1:])], "factors", step, self._comm.size)
        for buffer, message in zip(self._buffers, self._messages, strict=True):
            self._device.upload(buffer, message[: array.size])
        return self._buffers


class ReductionStrategy(MpiStrategy):
    """Averages in host memory with a Reduction, which a subclass builds for the flat buffer."""

    def __init__(self, context: ExchangeContext):
        super().__init__(context)
        self._reduction = self.reduction(context)

    @abstractmethod
    def reduction(self, context: ExchangeContext) -> Reduction:
        """Return a Reduction of flat.size floats over the ranks of self.comm.mpi."""

    def reduce(self, array: np.ndarray, step: int) -> None:
        self._reduction.reduce(array, step)


class GpuStrategy(Strategy):
    """Averages with a library that sums in GPU memory. The header lanes are the last floats of the flat buffer.

    Args:
        name: of the strategy, for error messages.
    """

    def __init__(self, name: str, context: ExchangeContext):
        super().__init__(zeroed_flat_buffer(context.device, context.shapes, LANES))
        self._name = name
        self.comm = context.comm
        self._lanes = self.flat.buffer.part(4 * (self.flat.size - LANES), 4 * LANES)

    @abstractmethod
    def sum(self, memory: CudaArray, step: int) -> None:
        """Replace the float32 values of all ranks by their sum. Collective."""

    def average(self, step: int) -> None:
        lanes = np.empty(LANES, np.float32)
        write_lanes(lanes, step)
        self.device.upload(self._lanes, lanes)
        self.device.synchronise()
        with self.comm.waiting():
            self.sum(CudaArray(self.flat.buffer, (self.flat.size,)), step)
        self.device.download(lanes, self._lanes)
        check_lanes(lanes, self._name, step, self.comm.size)
        self._set(self.flat.array() / np.float32(self.comm.size))

    def _set(self, array: np.ndarray) -> None:
        """Write an array of the backend to the first bytes of the flat buffer."""
        self.device.upload(self.flat.buffer, array)
        self.device.synchronise()

    def close(self) -> None:
        self.flat.close()


def zeroed_flat_buffer(device: Device, shapes: Sequence[tuple[int, ...]], extra: int) -> FlatBuffer:
    """Return a FlatBuffer of zeros.

    The gaps between its arrays are transferred, too, and new GPU memory is uninitialised.
    """
    flat = FlatBuffer(device, shapes, extra)
    if device.name != "cpu":
        device.upload(flat.buffer, np.zeros(flat.size, np.float32))
        device.synchronise()
    return flat
