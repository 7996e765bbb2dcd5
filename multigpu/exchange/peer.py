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
in sequence, and the host waits once, at the end. Both strategies use both directions of the link. Transferring the
weights of a layer during the update of later layers is not possible, because one compiled step does not expose the
layers. The effective overlaps are elsewhere: the loader reads the next images during the exchange, and Ready carries
the costs and stop requests. On the host, a slice is averaged and written in cache-sized pieces (HostDevice.mean),
which halves the memory traffic.

Source: Ding et al. 2014, sections 2.2 and 4.3, figure 2.
"""

from alexnet.config.schema import ConfigError
from multigpu.communicator import BufferHandle, Closed, DeviceInfo, Done, Reachability
from multigpu.device import MAX_SOURCES, DeviceError
from multigpu.device.host import HostDevice
from multigpu.exchange import Strategy
from multigpu.exchange.flat_buffer import FlatBuffer

UNIT = 256                                       # bytes: slices start at multiples of this


def connect(config, device, comm, shapes, warn, step=0):
    """Return the Peer strategy of this worker; see multigpu.exchange for the arguments. Collective.

    If a worker cannot access another worker's memory, all workers exchange through host memory and rank 0 warns once.
    """
    if comm.size > MAX_SOURCES:
        raise ConfigError(f"exchange=peer takes up to {MAX_SOURCES} workers, got {comm.size}")
    mesh, obstacle = open_mesh(device, comm, shapes, step)
    if obstacle:
        if comm.rank == 0:
            warn(f"{obstacle}; the workers exchange through the host's memory instead, which is slower")
        mesh, obstacle = open_mesh(HostDevice(device.on_host), comm, shapes, step)
    if obstacle:
        raise DeviceError(obstacle)
    return Peer(mesh, PairwiseAverage if comm.size == 2 and mesh.device.name != "cpu" else ShardedAverage)


def open_mesh(device, comm, shapes, step):
    """Return (Mesh on the device, None), or (None, reason) if it cannot be opened; the same in all workers."""
    devices = [on.device for on in comm.allgather(DeviceInfo(step, device.name))]
    obstacle = agree(comm, step, next(filter(None, map(device.can_reach, devices)), None))
    if obstacle:
        return None, obstacle
    mesh = Mesh(device, comm, shapes, step)
    obstacle = agree(comm, step, mesh.open())
    if obstacle:
        mesh.close()
    return (None if obstacle else mesh), obstacle


def agree(comm, step, sentence):
    """Return the reason of the first worker that reports one, or None. Collective."""
    return next(filter(None, (reach.sentence for reach in comm.allgather(Reachability(step, sentence)))), None)


class PairwiseAverage:
    """Averaging for two workers: each copies the other's whole buffer, then averages both (figure 2).

    own     this worker's buffer
    others  {rank: opened buffer}, with one entry
    """

    def __init__(self, device, comm, own, others):
        self._device, self._comm, self._own = device, comm, own
        ((rank, self._other),) = others.items()
        self._received = device.allocate(own.nbytes)
        self._both = [own, self._received] if comm.rank < rank else [self._received, own]

    def average(self, step):
        """Replace both buffers by their mean. Called after Ready; sends Done before it returns."""
        self._device.copy(self._received, self._other)
        self._device.synchronise()
        self._comm.allgather(Done(step))          # until Done, the other worker must not modify its buffer
        self._device.mean(self._own, self._both)


class ShardedAverage:
    """Averaging for N workers: each averages one slice of all buffers and writes the mean to all of them.

    Slices are disjoint, so the average needs no internal synchronisation. The host reads the other buffers in place;
    a GPU copies them first.
    """

    def __init__(self, device, comm, own, others):
        self._device, self._comm = device, comm
        place = share(own.nbytes, comm.rank, comm.size)
        self._mine, self._theirs = own.part(*place), {rank: other.part(*place) for rank, other in others.items()}
        self._received = {} if device.name == "cpu" else {rank: device.allocate(place[1]) for rank in others}
        sources = self._theirs | self._received | {comm.rank: self._mine}
        self._sources = [sources[rank] for rank in sorted(sources)]

    def average(self, step):
        """Replace all buffers by their mean. Called after Ready; sends Done before it returns."""
        for rank, received in self._received.items():
            self._device.copy(received, self._theirs[rank])
        self._device.mean(self._mine, self._sources, also=list(self._theirs.values()))
        self._device.synchronise()
        self._comm.allgather(Done(step))


def share(nbytes, rank, size):
    """Return (offset, size) in bytes of a worker's slice of a buffer."""
    units = nbytes // UNIT
    first, end = (UNIT * (units * each // size) for each in (rank, rank + 1))
    return first, end - first


class Peer(Strategy):
    """The strategy `peer`; created by connect().

    mesh  the Mesh of flat buffers
    kind  PairwiseAverage or ShardedAverage
    """

    def __init__(self, mesh, kind):
        self.device, self.flat, self._mesh = mesh.device, mesh.flat, mesh
        self._kind = kind(mesh.device, mesh.comm, mesh.flat.buffer, mesh.others)

    def average(self, step):
        self._kind.average(step)

    def close(self):
        self._mesh.close()


class Mesh:
    """One flat buffer per worker, opened by all workers.

    `flat` is this worker's buffer; `others` is {rank: opened buffer of that worker}.
    """

    def __init__(self, device, comm, shapes, step):
        self.device, self.comm, self._step = device, comm, step
        self.flat, self.others = FlatBuffer(device, shapes), {}

    def open(self):
        """Export own buffer and open those of all other workers.

        Returns None, or the reason why this worker cannot open a buffer.
        """
        exports = enumerate(self.comm.allgather(BufferHandle(self._step, self.flat.buffer.handle)))
        try:
            for rank, export in exports:
                if rank != self.comm.rank:
                    self.others[rank] = self.device.open(export.handle)
        except DeviceError as error:
            return str(error)

    def close(self):
        """Close the buffers of the others, wait until the others have closed this one, then free it."""
        for buffer in self.others.values():
            buffer.close()
        self.comm.allgather(Closed(self._step))
        self.flat.close()
