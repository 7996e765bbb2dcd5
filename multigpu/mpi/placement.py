"""The device and the share of the cores of each rank of an MPI job."""

import os
from typing import NamedTuple

from alexnet.config.schema import Config, ConfigError, backend_of
from alexnet.native.cores import core_numbers
from multigpu.device import DeviceError, cuda_home, why_no_jax
from multigpu.mpi.communicator import MpiCommunicator


class RankPlacement(NamedTuple):
    """Rank to all ranks: the cores that it may use, and its device, or the message why it has none."""

    cores: frozenset[int]
    device: str | None
    error: str | None
    step: int = 0


def place_rank(config: Config, comm: MpiCommunicator) -> tuple[str | None, str | None]:
    """Set OMP_NUM_THREADS to this rank's share of the cores; return (device, None), or (None, message). Collective.

    The message is the error of the first rank that has no device.  Ranks of one machine that may use the same cores
    share them.  If MPI binds its ranks, each rank uses its own cores.  An OMP_NUM_THREADS that is already set is kept.
    """
    cores = core_numbers()
    try:
        placement = RankPlacement(cores, device_of(config, comm), None)
    except (ConfigError, DeviceError) as error:
        placement = RankPlacement(cores, None, str(error))
    placements = comm.allgather(placement)
    host = comm.hosts[comm.rank]
    sharing = sum(
        (other_host, other.cores) == (host, cores) for other_host, other in zip(comm.hosts, placements, strict=True)
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // sharing)))
    error_message = next((other.error for other in placements if other.error), None)
    return (placement.device, None) if error_message is None else (None, error_message)


def device_of(config: Config, comm: MpiCommunicator) -> str:
    """Return the name of this rank's device from the setting `devices`: one for each rank of a machine, or one for all.

    auto: the GPUs of the machine are assigned to its ranks round-robin, or cpu if it has none.
    """
    devices, local = config.devices, comm.local_rank
    if devices[0] == "auto":
        gpus = gpus_for(config)
        return f"cuda{local % gpus}" if gpus else "cpu"
    if len(devices) == 1:
        return devices[0]
    if len(devices) != comm.local_size:
        raise ConfigError(
            f"devices must name one device, or one for each of the {comm.local_size} ranks on "
            f"{comm.hosts[comm.rank]}, got {','.join(devices)}"
        )
    return devices[local]


def gpus_for(config: Config) -> int:
    """Return how many GPUs of this machine the configured backend can use."""
    if backend_of(config.backend, "cuda0") != "jax" or why_no_jax():
        return 0
    try:
        return cuda_home("cuda0").count()
    except DeviceError:
        return 0
