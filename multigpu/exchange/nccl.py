"""NCCL's allreduce on GPU memory.

    nccl32   float32; NCCL chooses the order of the sum
    nccl16   the values of each rank are rounded to float16 once, summed by NCCL in float16, and divided in float32

NCCL does not support two ranks on one GPU. The ranks connect through MPI, which broadcasts the identifier from rank 0.
The header lanes of a reduction are always float32: nccl32 sums them in the same call, nccl16 in a second call on the
same stream. Values that float16 cannot represent are reported to all ranks over MPI.

Source: NVIDIA, nccl4py's Communicator (nccl.core).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alexnet.config import Config, ConfigError
from alexnet.native.packages import install
from multigpu.communicator import DeviceInfo
from multigpu.device.cuda_array import CudaArray
from multigpu.exchange.base import STRATEGIES, ExchangeContext, Strategy
from multigpu.exchange.mpi_strategy import GpuStrategy
from multigpu.exchange.step_header import HEADER_BYTES, LANES, OverflowInfo, StepHeader, check_headers

if TYPE_CHECKING:
    from types import ModuleType

    from multigpu.communicator import Communicator
    from multigpu.device.cuda import CudaDevice


class UniqueId(NamedTuple):
    """Rank 0 to all: NCCL's identifier of the job. That of the other ranks is empty."""

    step: int
    identifier: bytes


@STRATEGIES.register("nccl32")
class Nccl32(GpuStrategy):
    """NCCL sums in float32."""

    device: CudaDevice
    needs_gpu = True

    def __init__(self, name: str, context: ExchangeContext):
        nccl = import_nccl(name)
        comm = context.comm
        check_devices(name, context)
        own = UniqueId(context.step, nccl.get_unique_id().as_bytes if comm.rank == 0 else b"")
        identifier = comm.allgather(own)[0].identifier
        super().__init__(name, context)
        self._sum = nccl.SUM
        with self.device.copy_stream():
            self._nccl = nccl.Communicator.init(comm.size, comm.rank, nccl.UniqueId.from_bytes(identifier))

    @classmethod
    def check(cls, name: str, config: Config, comm: Communicator) -> None:
        super().check(name, config, comm)
        import_nccl(name)

    @classmethod
    def connect(cls, context: ExchangeContext) -> Strategy:
        return cls("nccl32", context)

    def sum(self, memory: CudaArray, step: int) -> None:
        self._allreduce(memory, memory)

    def _allreduce(self, source: CudaArray | np.ndarray, destination: CudaArray) -> None:
        with self.device.copy_stream() as stream:
            self._nccl.allreduce(source, destination, self._sum, stream=stream)
        self.device.synchronise()

    def close(self) -> None:
        with self.device.copy_stream():
            self._nccl.destroy()
        super().close()


@STRATEGIES.register("nccl16")
class Nccl16(Nccl32):
    """As Nccl32, but NCCL sums in float16."""

    def __init__(self, name: str, context: ExchangeContext):
        super().__init__(name, context)
        self._halves = self.device.allocate(2 * self.flat.size)

    @classmethod
    def connect(cls, context: ExchangeContext) -> Strategy:
        if context.device.on_host:
            raise ConfigError(
                "exchange=nccl16 rounds on the GPU, which only backend=jax does; use backend=jax or exchange=nccl32"
            )
        return cls("nccl16", context)

    def sum(self, memory: CudaArray, step: int) -> None:
        """Replace the float32 values by the sum of the ranks' float16 values; header lanes stay float32."""
        values = self.flat.array()
        rounded = values.astype(np.float16)
        self._check_overflow(values, rounded, step, summed=False)
        self._allreduce(rounded, CudaArray(self._halves, (self.flat.size,), np.float16))
        lanes = CudaArray(self._lanes, (LANES,))
        self._allreduce(lanes, lanes)
        sums = self._halves.array((self.flat.size,), np.float16)
        self._check_overflow(sums, sums, step, summed=True)
        self._set(sums[:-LANES].astype(np.float32))

    def _check_overflow(self, values: np.ndarray, rounded: np.ndarray, step: int, summed: bool) -> None:
        """Raise Overflow on all ranks if a value of any rank is infinite in float16."""
        infinite = abs(rounded) == np.inf
        header = StepHeader(step, step)
        if bool(infinite.any()):
            index = int(infinite.argmax())
            header = header.with_overflow(self.comm.rank, OverflowInfo(summed, False, index, float(values[index])))
        own = np.zeros(HEADER_BYTES, np.uint8)
        header.write(own)
        of_all = np.empty((self.comm.size, HEADER_BYTES), np.uint8)
        self.comm.mpi.Allgather(own, of_all)
        first, *others = map(StepHeader.read, of_all)
        check_headers([first.combine(*others)], self._name, step, self.comm.size)

    def close(self) -> None:
        self._halves.close()
        super().close()


def import_nccl(name: str) -> ModuleType:
    """Return nccl4py's module; raises ConfigError if it cannot be imported."""
    try:
        import nccl.core  # optional, and it loads CUDA
    except ImportError as error:
        remedy = f"`{install('nccl')}` installs it on a machine with CUDA"
        raise ConfigError(f"exchange={name} needs nccl4py, which cannot be imported ({error}); {remedy}") from error
    return nccl.core


def check_devices(name: str, context: ExchangeContext) -> None:
    """Raise ConfigError on all ranks if a rank has no GPU, or two ranks on one machine share a GPU."""
    comm = context.comm
    devices = [info.device for info in comm.allgather(DeviceInfo(context.step, context.device.name))]
    places = list(zip(comm.hosts, devices, strict=True))
    for rank, (host, device) in enumerate(places):
        if device == "cpu":
            raise ConfigError(f"exchange={name} needs a GPU for each rank, but rank {rank} on {host} computes on cpu")
        first = places.index((host, device))
        if first != rank:
            raise ConfigError(
                f"exchange={name} needs a GPU for each rank, because NCCL does not support two ranks on one GPU: "
                f"ranks {first} and {rank} both have {device} on {host}"
            )
