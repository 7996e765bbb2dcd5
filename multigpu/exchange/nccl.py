"""NCCL's allreduce, between the memories of the GPUs.

    nccl32   float32; the order of the sum is NCCL's
    nccl16   each rank's numbers rounded to float16 once, summed by NCCL in float16, divided in float32

NCCL refuses two ranks on one GPU.  The ranks find each other by MPI, which brings rank 0's identifier to all.  The
Digits that prove a reduction are float32 in either: of nccl32 in the same call, of nccl16 in another on its stream.
What float16 cannot hold, all tell each other over MPI.

Source: NVIDIA, nccl4py's Communicator (nccl.core).
"""

import nccl.core as nccl
import numpy as np

from alexnet.config import ConfigError
from multigpu.exchange.over_mpi import Memory, OnGpu
from multigpu.exchange.proof import DIGITS, Overflowed, Proof, check
from multigpu.partners import On


def connect32(config, device, partners, shapes, warn, step=0):
    """nccl32 of this rank with its partners, as multigpu.exchange says; all of them call it."""
    return Nccl32("nccl32", device, partners, shapes, step)


def connect16(config, device, partners, shapes, warn, step=0):
    """nccl16 of this rank with its partners, as multigpu.exchange says; all of them call it."""
    if device.on_host:
        raise ConfigError("exchange=nccl16 rounds on the GPU, which engine=jax can; take that, or exchange=nccl32")
    return Nccl16("nccl16", device, partners, shapes, step)


class Nccl32(OnGpu):
    """What a rule is handed.  Raises ConfigError where a rank has no GPU, or two have one."""

    def __init__(self, name, device, partners, shapes, step):
        check_devices(name, device, partners, step)
        identifier = partners.comm.bcast(nccl.get_unique_id().as_bytes if partners.rank == 0 else None)
        super().__init__(name, device, partners, shapes, self._add_up_in_place)
        with device.lent():
            self._nccl = nccl.Communicator.init(partners.size, partners.rank, nccl.UniqueId.from_bytes(identifier))

    def _add_up_in_place(self, memory):
        self._allreduce(memory, memory)

    def _allreduce(self, source, destination):
        with self.device.lent() as stream:
            self._nccl.allreduce(source, destination, nccl.SUM, stream=stream)
        self.device.synchronise()

    def close(self):
        with self.device.lent():
            self._nccl.destroy()
        super().close()


class Nccl16(Nccl32):
    """As Nccl32, by way of float16."""

    def __init__(self, name, device, partners, shapes, step):
        super().__init__(name, device, partners, shapes, step)
        self._halves = device.allocate(2 * self._n)

    def reduce(self, step, mean=True):
        """Replace the buffers of all ranks by their mean, or by their sum; as average()."""
        self._step = step
        super().reduce(step, mean)

    def _add_up_in_place(self, memory):
        """The ranks' float32 become the sum of their float16; the digits at the end are float32 all the same."""
        values = self.flat.array()
        rounded = values.astype(np.float16)
        self._tell(values, rounded, False)
        self._allreduce(rounded, Memory(self._halves, self._n, np.float16))
        digits = Memory(self._digits, DIGITS)
        self._allreduce(digits, digits)
        sums = self._halves.array((self._n,), np.float16)
        self._tell(sums, sums, True)
        result = sums[:-DIGITS].astype(np.float32)
        self.device.upload(self.flat.buffer, result)
        self.device.synchronise()

    def _tell(self, values, rounded, summed):
        """Raise Overflow on all ranks where one has an infinity."""
        infinite, proof = abs(rounded) == np.inf, Proof(self._step, self._step)
        if bool(infinite.any()):
            index = int(infinite.argmax())
            proof = proof.noting(self._partners.rank, Overflowed(summed, False, index, float(values[index])))
        proof, *others = self._partners.comm.allgather(proof)
        check([proof.and_(*others)], self._name, self._step, self._partners.size)

    def close(self):
        self._halves.close()
        super().close()


def check_devices(name, device, partners, step):
    """Raise ConfigError, on all ranks, where one has no GPU, or two of a machine have one."""
    places = list(zip(partners.hosts, (on.device for on in partners.meet(On(step, device.name))), strict=True))
    for rank, (host, where) in enumerate(places):
        if where == "cpu":
            raise ConfigError(f"exchange={name} needs a GPU for each rank, but rank {rank} on {host} computes on cpu")
        first = places.index((host, where))
        if first != rank:
            raise ConfigError(
                f"exchange={name} needs a GPU for each rank, because NCCL refuses to serve two ranks on one: "
                f"ranks {first} and {rank} both have {where} on {host}"
            )
