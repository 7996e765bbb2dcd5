"""NCCL's allreduce on GPU memory.

    nccl32   float32; NCCL chooses the order of the sum
    nccl16   the values of each rank are rounded to float16 once, summed by NCCL in float16, and divided in float32

NCCL does not support two ranks on one GPU. The ranks connect through MPI, which broadcasts the identifier from rank 0.
The header lanes of a reduction are always float32: nccl32 sums them in the same call, nccl16 in a second call on the
same stream. Values that float16 cannot represent are reported to all ranks over MPI.

Source: NVIDIA, nccl4py's Communicator (nccl.core).
"""

import nccl.core as nccl
import numpy as np

from alexnet.config.schema import ConfigError
from multigpu.communicator import DeviceInfo
from multigpu.exchange.over_mpi import GpuArrayInterface, GpuStrategy
from multigpu.exchange.step_header import DIGITS, Overflowed, StepHeader, check


def connect32(config, device, comm, shapes, warn, step=0):
    """Return the strategy nccl32 of this rank; see multigpu.exchange for the arguments. Collective."""
    return Nccl32("nccl32", device, comm, shapes, step)


def connect16(config, device, comm, shapes, warn, step=0):
    """Return the strategy nccl16 of this rank; see multigpu.exchange for the arguments. Collective."""
    if device.on_host:
        raise ConfigError("exchange=nccl16 rounds on the GPU, which backend=jax can; take that, or exchange=nccl32")
    return Nccl16("nccl16", device, comm, shapes, step)


class Nccl32(GpuStrategy):
    """The strategy nccl32. Raises ConfigError if a rank has no GPU or two ranks share one."""

    def __init__(self, name, device, comm, shapes, step):
        check_devices(name, device, comm, step)
        identifier = comm.mpi.bcast(nccl.get_unique_id().as_bytes if comm.rank == 0 else None)
        super().__init__(name, device, comm, shapes, self._add_up_in_place)
        with device.lent():
            self._nccl = nccl.Communicator.init(comm.size, comm.rank, nccl.UniqueId.from_bytes(identifier))

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
    """The strategy nccl16: as Nccl32, but the sum is computed in float16."""

    def __init__(self, name, device, comm, shapes, step):
        super().__init__(name, device, comm, shapes, step)
        self._halves = device.allocate(2 * self._n)

    def reduce(self, step, mean=True):
        """Replace the buffers of all ranks by their mean or sum; see average()."""
        self._step = step
        super().reduce(step, mean)

    def _add_up_in_place(self, memory):
        """Replace the float32 values by the sum of the ranks' float16 values; header lanes stay float32."""
        values = self.flat.array()
        rounded = values.astype(np.float16)
        self._tell(values, rounded, False)
        self._allreduce(rounded, GpuArrayInterface(self._halves, self._n, np.float16))
        digits = GpuArrayInterface(self._digits, DIGITS)
        self._allreduce(digits, digits)
        sums = self._halves.array((self._n,), np.float16)
        self._tell(sums, sums, True)
        result = sums[:-DIGITS].astype(np.float32)
        self.device.upload(self.flat.buffer, result)
        self.device.synchronise()

    def _tell(self, values, rounded, summed):
        """Raise Overflow on all ranks if a value of any rank is infinite."""
        infinite, proof = abs(rounded) == np.inf, StepHeader(self._step, self._step)
        if bool(infinite.any()):
            index = int(infinite.argmax())
            proof = proof.noting(self._comm.rank, Overflowed(summed, False, index, float(values[index])))
        proof, *others = self._comm.mpi.allgather(proof)
        check([proof.and_(*others)], self._name, self._step, self._comm.size)

    def close(self):
        self._halves.close()
        super().close()


def check_devices(name, device, comm, step):
    """Raise ConfigError on all ranks if a rank has no GPU, or two ranks on one machine share a GPU."""
    devices = [info.device for info in comm.allgather(DeviceInfo(step, device.name))]
    places = list(zip(comm.hosts, devices, strict=True))
    for rank, (host, where) in enumerate(places):
        if where == "cpu":
            raise ConfigError(f"exchange={name} needs a GPU for each rank, but rank {rank} on {host} computes on cpu")
        first = places.index((host, where))
        if first != rank:
            raise ConfigError(
                f"exchange={name} needs a GPU for each rank, because NCCL refuses to serve two ranks on one: "
                f"ranks {first} and {rank} both have {where} on {host}"
            )
