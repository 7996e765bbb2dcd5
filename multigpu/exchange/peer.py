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

import os

import numpy as np

from alexnet.config import ConfigError
from multigpu.device import MOST_SOURCES, DeviceError
from multigpu.device.host import HostDevice
from multigpu.exchange import Agreed, Exchange
from multigpu.exchange.flat import Flat
from multigpu.exchange.partners import Closed, Done, Export, Hello, Reach, Ready, Totals

# settings that are a worker's own
OWN = {"rank", "device", "devices", "threads", "tiles", "run_name", "resume_train", "print_freq"}
UNIT = 256                                       # bytes: slices begin at multiples of it


def connect(config, network, device, partners, warn, step=0):
    """The exchange of this worker with its partners, as multigpu.exchange says; all of them call it.

    Where any worker cannot reach another's memory, all exchange through the host's, and rank 0 warns once.
    """
    if partners.size > MOST_SOURCES:
        raise ConfigError(f"exchange=peer takes up to {MOST_SOURCES} workers, got {partners.size}")
    devices = greet(config, network, device, partners, step)
    gradients = config.exchange_what == "gradients"
    variables = network.gradients if gradients else network.parameters_and_velocities
    shapes = [np.shape(variable.get_value(borrow=True)) for variable in variables]
    mesh, obstacle = open_mesh(device, partners, shapes, step, devices)
    if obstacle:
        if partners.rank == 0:
            warn(f"{obstacle}; the workers exchange through the host's memory instead, which is slower")
        host = HostDevice(copies=not network.computes_on_host)
        mesh, obstacle = open_mesh(host, partners, shapes, step, [host.name] * partners.size)
    if obstacle:
        raise DeviceError(obstacle)
    kind = Pair if partners.size == 2 and mesh.device.name != "cpu" else Slices
    return Peer(network, variables, gradients, config.average_every, mesh, kind)


def greet(config, network, device, partners, step):
    """Say Hello; returns the names of all workers' devices, in the order of ranks.

    Raises ConfigError where settings or weights differ, OutOfStep where the number of steps done does.
    """
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in OWN}
    alike = [*network.frozen, *network.parameters_and_velocities]
    weights = {v.name: checksum(v.get_value(borrow=True)) for v in alike}
    hellos = partners.meet(Hello(step, device.name, os.getpid(), settings, weights))
    first = hellos[0]
    for rank, hello in enumerate(hellos):
        partners.name(rank, hello.pid)
        for name, value in hello.settings.items():
            if value != first.settings[name]:
                raise ConfigError(
                    f"workers 0 and {rank} differ in {name}: {first.settings[name]} and {value}; give both the same"
                )
        for name, value in hello.weights.items():
            if value != first.weights.get(name):
                raise ConfigError(
                    f"workers 0 and {rank} begin with different {name}; start both anew, or from one checkpoint"
                )
    return [hello.device for hello in hellos]


def checksum(array):
    """The sum of a float32 array's bits as words of 32, modulo 2**32."""
    return int(np.asarray(array).view(np.uint32).sum(dtype=np.uint32))


def open_mesh(device, partners, shapes, step, devices):
    """(a Mesh on the device, None), or (None, the sentence why there can be none); alike in all workers."""
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


class Peer(Exchange):
    """What the training loop is handed; made by connect().

    variables  shared variables of the network that are exchanged, in the order of the flat buffer
    gradients  whether these are gradients, which are applied afterwards
    every      steps from one exchange to the next
    mesh       the Mesh that their values go through        kind   Pair or Slices
    """

    def __init__(self, network, variables, gradients, every, mesh, kind):
        self._network, self._variables = network, variables
        self._gradients, self._every = gradients, every
        self._mesh, self._partners, self._totals = mesh, mesh.partners, 0
        self._strategy = kind(mesh.device, mesh.partners, mesh.flat.buffer, mesh.others)

    def step(self, *inputs, rate):
        return self._network.compute(*inputs) if self._gradients else self._network.train(*inputs, rate)

    def after_step(self, step, cost, error, rate, stop, last):
        cost, error = float(cost), float(error)
        if step % self._every and not last:
            return Agreed(cost, error, False)
        self._mesh.flat.pack(self._variables)
        self._mesh.device.synchronise()
        all_ready = self._partners.meet(Ready(step, cost, error, bool(stop)))
        self._strategy.average(step)
        self._mesh.flat.unpack(self._variables)
        if self._gradients:
            self._network.apply(np.float32(rate))
        costs, errors, stops = zip(*((ready.cost, ready.error, ready.stop) for ready in all_ready), strict=True)
        return Agreed(sum(costs) / len(costs), sum(errors) / len(errors), any(stops))

    def total(self, values, stop):
        self._totals += 1
        heard = self._partners.meet(Totals(self._totals, tuple(map(float, values)), bool(stop)))
        return np.sum([totals.values for totals in heard], axis=0), any(totals.stop for totals in heard)

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
