"""Exchange between peers: each worker reads and writes the others' memory itself.

Every worker's arrays lie in a flat buffer that all others have opened: over CUDA IPC on GPUs, in shared memory on the
host.  One exchange has two barriers; between them the buffers belong to the strategy:

    update   own batch; arrays into own buffer           (nothing is copied where they lie there already)
             synchronise, Ready                          all buffers may be read
    Pair     copy the other's buffer, synchronise, Done, average both       (figure 2: two GPUs)
    Slices   average one's own slice of all buffers, write it into all, synchronise, Done
             arrays out of own buffer

Every mean is the same float32 sum in the order of ranks, divided once, so all workers hold the same bits.

What was considered for overlap.  On a GPU, copying 488 MB takes some 20 ms over PCIe 4 and averaging them 0.5 ms, so
averaging one piece while the next is copied gains less than 3 %; copies and means are queued one after the other and
the host waits once, at the end.  Both directions of the link are busy in either strategy.  The weights of a layer
could only travel while later layers are updated, which one compiled step does not show.  What pays is done by others:
the loader reads the next images meanwhile, and costs and requests to stop travel with Ready.  On the host a slice is
averaged and handed out piece by piece within the cache (HostDevice.mean), which halves the traffic.

Source: Ding et al. 2014, sections 2.2 and 4.3, figure 2.
"""

from alexnet.config import ConfigError
from multigpu.device import MOST_SOURCES, DeviceError
from multigpu.device.host import HostDevice
from multigpu.exchange import Strategy
from multigpu.exchange.flat import Flat
from multigpu.partners import Closed, Done, Export, On, Reach

UNIT = 256                                       # bytes: slices begin at multiples of it


def connect(config, device, partners, shapes, warn, step=0):
    """The Peer of this worker with its partners, as multigpu.exchange says; all of them call it.

    Where any worker cannot reach another's memory, all exchange through the host's, and rank 0 warns once.
    """
    if partners.size > MOST_SOURCES:
        raise ConfigError(f"exchange=peer takes up to {MOST_SOURCES} workers, got {partners.size}")
    mesh, obstacle = open_mesh(device, partners, shapes, step)
    if obstacle:
        if partners.rank == 0:
            warn(f"{obstacle}; the workers exchange through the host's memory instead, which is slower")
        mesh, obstacle = open_mesh(HostDevice(device.on_host), partners, shapes, step)
    if obstacle:
        raise DeviceError(obstacle)
    return Peer(mesh, Pair if partners.size == 2 and mesh.device.name != "cpu" else Slices)


def open_mesh(device, partners, shapes, step):
    """(a Mesh on the device, None), or (None, the sentence why there can be none); alike in all workers."""
    devices = [on.device for on in partners.meet(On(step, device.name))]
    obstacle = agree(partners, step, next(filter(None, map(device.can_reach, devices)), None))
    if obstacle:
        return None, obstacle
    mesh = Mesh(device, partners, shapes, step)
    obstacle = agree(partners, step, mesh.open())
    if obstacle:
        mesh.close()
    return (None if obstacle else mesh), obstacle


def agree(partners, step, sentence):
    """The first worker's sentence of why it cannot go on so; None where all can."""
    return next(filter(None, (reach.sentence for reach in partners.meet(Reach(step, sentence)))), None)


class Pair:
    """Two workers, as figure 2 draws it: each copies the other's whole buffer, then averages both.

    own     this worker's buffer       others  {rank: its buffer, opened}, a single one
    """

    def __init__(self, device, partners, own, others):
        self._device, self._partners, self._own = device, partners, own
        ((rank, self._other),) = others.items()
        self._received = device.allocate(own.nbytes)
        self._both = [own, self._received] if partners.rank < rank else [self._received, own]

    def average(self, step):
        """Replace own and other's buffer by their mean; begins after Ready, and has said Done on return."""
        self._device.copy(self._received, self._other)
        self._device.synchronise()
        self._partners.meet(Done(step))          # before it the other may not change what is copied here
        self._device.mean(self._own, self._both)


class Slices:
    """N workers: each averages one slice of all buffers, and writes the mean into all of them.

    Slices are disjoint, so nobody waits within.  The host reads the others' memory where it lies; a GPU copies first.
    """

    def __init__(self, device, partners, own, others):
        self._device, self._partners = device, partners
        place = share(own.nbytes, partners.rank, partners.size)
        self._mine, self._theirs = own.part(*place), {rank: other.part(*place) for rank, other in others.items()}
        self._received = {} if device.name == "cpu" else {rank: device.allocate(place[1]) for rank in others}
        sources = self._theirs | self._received | {partners.rank: self._mine}
        self._sources = [sources[rank] for rank in sorted(sources)]

    def average(self, step):
        """Replace all buffers by their mean; begins after Ready, and has said Done on return."""
        for rank, received in self._received.items():
            self._device.copy(received, self._theirs[rank])
        self._device.mean(self._mine, self._sources, also=list(self._theirs.values()))
        self._device.synchronise()
        self._partners.meet(Done(step))


def share(nbytes, rank, size):
    """(first byte, bytes) of a worker's slice of a buffer."""
    units = nbytes // UNIT
    first, end = (UNIT * (units * each // size) for each in (rank, rank + 1))
    return first, end - first


class Peer(Strategy):
    """What a rule is handed; made by connect().

    mesh  the Mesh that the values go through        kind   Pair or Slices
    """

    def __init__(self, mesh, kind):
        self.device, self.flat, self._mesh = mesh.device, mesh.flat, mesh
        self._kind = kind(mesh.device, mesh.partners, mesh.flat.buffer, mesh.others)

    def average(self, step):
        self._kind.average(step)

    def close(self):
        self._mesh.close()


class Mesh:
    """A flat buffer for each worker, open in all: `flat` is this one's, others {rank: buffer of that worker}."""

    def __init__(self, device, partners, shapes, step):
        self.device, self.partners, self._step = device, partners, step
        self.flat, self.others = Flat(device, shapes), {}

    def open(self):
        """Export the own buffer and open every partner's; returns None, or the sentence why this worker cannot."""
        exports = enumerate(self.partners.meet(Export(self._step, self.flat.buffer.handle)))
        try:
            for rank, export in exports:
                if rank != self.partners.rank:
                    self.others[rank] = self.device.open(export.handle)
        except DeviceError as error:
            return str(error)

    def close(self):
        """Close the others' buffers, wait until they have closed this one, then free it."""
        for buffer in self.others.values():
            buffer.close()
        self.partners.meet(Closed(self._step))
        self.flat.close()
