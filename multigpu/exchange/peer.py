"""Exchange by direct access to the memory of the other workers, on one machine.

The arrays of each worker are stored in a flat buffer that all other workers have opened: over CUDA IPC on GPUs, in
shared memory on the host. An exchange has two barriers; between them the strategy has exclusive access to the buffers:

    update   train on own batch; copy the arrays to own buffer      (no copy if they are stored there already)
             synchronise, Ready                                     all buffers can be read
    PairwiseAverage  copy the other buffer, synchronise, Done, average both            (figure 2: two GPUs)
    ShardedAverage   average own slice of all buffers, write it to all, synchronise, Done
             copy the arrays out of own buffer

Every mean is the same float32 sum in rank order, divided once, so all workers get the same bits.

Overlapping these phases gains little. On a GPU, copying 488 MB takes about 20 ms over PCIe 4 and averaging takes
0.5 ms, so averaging one piece during the copy of the next gains less than 3 %. Copies and means are therefore queued
in sequence, and the host waits once, at the end. Both strategies use both directions of the link. The effective
overlaps are elsewhere: gradients of the last layers are exchanged during the rest of the backward pass
(multigpu.rules.overlap), the loader reads the next images during the exchange, and Ready carries the costs and stop
requests. On the host, a slice is averaged and written in cache-sized pieces (HostDevice.mean),
which halves the memory traffic.

Source: Ding et al. 2014, sections 2.2 and 4.3, figure 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alexnet.config import Config, ConfigError
from multigpu.communicator import BufferHandle, Closed, DeviceInfo, Done, Reachability
from multigpu.device import MAX_SOURCES, Buffer, Device, DeviceError
from multigpu.device.host import HostDevice
from multigpu.exchange.base import STRATEGIES, ExchangeContext, Strategy
from multigpu.exchange.flat_buffer import FlatBuffer

if TYPE_CHECKING:
    from multigpu.communicator import Communicator

UNIT = 256                                       # bytes: slices start at multiples of this


@STRATEGIES.register("peer")
class Peer(Strategy):
    """Averages by access to the flat buffers of all workers.

    Args:
        mesh: these buffers.
        kind: how they are averaged.
    """

    needs_mpi = False
    one_machine = True
    preference = 2
    overlaps = True
    gathers = True

    def __init__(self, mesh: Mesh, kind: type[PairwiseAverage] | type[ShardedAverage]):
        super().__init__(mesh.flat)
        self._mesh = mesh
        self._average = kind(mesh.device, mesh.comm, mesh.flat.buffer, mesh.others)

    @classmethod
    def check(cls, name: str, config: Config, comm: Communicator) -> None:
        super().check(name, config, comm)
        if comm.size > MAX_SOURCES:
            raise ConfigError(f"exchange={name} supports up to {MAX_SOURCES} workers, got {comm.size}")

    @classmethod
    def connect(cls, context: ExchangeContext) -> Strategy:
        """Open the buffers of all workers. Collective.

        If a worker cannot access another worker's memory, all workers exchange through host memory and rank 0 warns
        once.
        """
        device, comm = context.device, context.comm
        mesh, obstacle = open_mesh(device, comm, context.shapes, context.step)
        if obstacle:
            if comm.rank == 0:
                context.warn(f"{obstacle}; the workers exchange through the host's memory instead, which is slower")
            mesh, obstacle = open_mesh(HostDevice(device.on_host), comm, context.shapes, context.step)
        if mesh is None:
            raise DeviceError(obstacle)
        return cls(mesh, PairwiseAverage if comm.size == 2 and mesh.device.name != "cpu" else ShardedAverage)

    def average(self, step: int) -> None:
        self._average.average(step)

    def gather(self, step: int) -> list[list[np.ndarray]]:
        return [self.flat.arrays(buffer) for buffer in self._mesh.gather(step)]

    def close(self) -> None:
        self._mesh.close()


def open_mesh(
    device: Device, comm: Communicator, shapes: Sequence[tuple[int, ...]], step: int
) -> tuple[Mesh | None, str | None]:
    """Return (Mesh on the device, None), or (None, reason) if it cannot be opened; the same in all workers."""
    devices = [info.device for info in comm.allgather(DeviceInfo(step, device.name))]
    obstacle = first_obstacle(comm, step, next(filter(None, map(device.can_reach, devices)), None))
    if obstacle:
        return None, obstacle
    mesh = Mesh(device, comm, shapes, step)
    obstacle = first_obstacle(comm, step, mesh.open())
    if obstacle:
        mesh.close()
        return None, obstacle
    return mesh, None


def first_obstacle(comm: Communicator, step: int, obstacle: str | None) -> str | None:
    """Return the obstacle of the first worker that has one, or None. Collective."""
    return next(filter(None, (reach.reason for reach in comm.allgather(Reachability(step, obstacle)))), None)


class PairwiseAverage:
    """Averaging for two workers: each copies the other's whole buffer, then averages both (figure 2).

    Args:
        device: holds the buffers.
        comm: connects the two workers.
        own: this worker's buffer.
        others: {rank: opened buffer}, with one entry.
    """

    def __init__(self, device: Device, comm: Communicator, own: Buffer, others: Mapping[int, Buffer]):
        self._device = device
        self._comm = comm
        self._own = own
        ((rank, self._other),) = others.items()
        self._received = device.allocate(own.nbytes)
        self._both = [own, self._received] if comm.rank < rank else [self._received, own]

    def average(self, step: int) -> None:
        """Replace both buffers by their mean. Called after Ready; sends Done before it returns."""
        self._device.copy(self._received, self._other)
        self._device.synchronise()
        self._comm.allgather(Done(step))         # until Done, the other worker must not modify its buffer
        self._device.mean(self._own, self._both)


class ShardedAverage:
    """Averaging for N workers: each averages one slice of all buffers and writes the mean to all of them.

    Slices are disjoint, so the average needs no internal synchronisation. The host reads the other buffers in place;
    a GPU copies them first.

    Args:
        device, comm, own, others: see PairwiseAverage.
    """

    def __init__(self, device: Device, comm: Communicator, own: Buffer, others: Mapping[int, Buffer]):
        self._device = device
        self._comm = comm
        offset, nbytes = slice_of(own.nbytes, comm.rank, comm.size)
        self._own = own.part(offset, nbytes)
        self._others = {rank: other.part(offset, nbytes) for rank, other in others.items()}
        self._received: dict[int, Buffer] = {}
        if device.name != "cpu":
            self._received = {rank: device.allocate(nbytes) for rank in others}
        sources = self._others | self._received | {comm.rank: self._own}
        self._sources = [sources[rank] for rank in sorted(sources)]

    def average(self, step: int) -> None:
        """Replace all buffers by their mean. Called after Ready; sends Done before it returns."""
        for rank, received in self._received.items():
            self._device.copy(received, self._others[rank])
        self._device.mean(self._own, self._sources, also=list(self._others.values()))
        self._device.synchronise()
        self._comm.allgather(Done(step))


def slice_of(nbytes: int, rank: int, size: int) -> tuple[int, int]:
    """Return the offset and the size, in bytes, of a worker's slice of a buffer."""
    units = nbytes // UNIT
    first = UNIT * (units * rank // size)
    end = UNIT * (units * (rank + 1) // size)
    return first, end - first


class Mesh:
    """One flat buffer per worker, opened by all workers.

    Attributes:
        flat: this worker's buffer.
        others: {rank: opened buffer of that worker}.
    """

    def __init__(self, device: Device, comm: Communicator, shapes: Sequence[tuple[int, ...]], step: int):
        self.device = device
        self.comm = comm
        self._step = step
        self.flat = FlatBuffer(device, shapes)
        self.others: dict[int, Buffer] = {}
        self._received: dict[int, Buffer] = {}

    def open(self) -> str | None:
        """Export own buffer and open those of all other workers. Collective.

        Returns:
            None, or the reason why this worker cannot open a buffer.
        """
        handles = self.comm.allgather(BufferHandle(self._step, self.flat.buffer.handle))
        try:
            for rank, message in enumerate(handles):
                if rank != self.comm.rank:
                    self.others[rank] = self.device.open(message.handle)
        except DeviceError as error:
            return str(error)
        return None

    def gather(self, step: int) -> list[Buffer]:
        """Return copies of the others' buffers and own buffer, in rank order. Called after Ready; sends Done."""
        for rank, other in self.others.items():
            if rank not in self._received:
                self._received[rank] = self.device.allocate(other.nbytes)
            self.device.copy(self._received[rank], other)
        self.device.synchronise()
        self.comm.allgather(Done(step))
        buffers = self._received | {self.comm.rank: self.flat.buffer}
        return [buffers[rank] for rank in sorted(buffers)]

    def close(self) -> None:
        """Close the buffers of the others, wait until the others have closed this one, then free it. Collective."""
        for buffer in self.others.values():
            buffer.close()
        self.comm.allgather(Closed(self._step))
        self.flat.close()
