"""Exchange strategies: how the arrays of all workers are averaged.

When workers exchange, and with whom, is decided by the rule (multigpu.rules).

    peer             direct access to the memory of the other workers; one machine only       peer.py
    ar, allreduce    MPI's Allreduce                                                          allreduce.py
    asa32, asa16     alltoall, local sum of one slice per rank, allgather                     asa.py
    copper, copper16 binary tree                                                              copper.py
    nccl32, nccl16   NCCL's allreduce on the GPUs                                             nccl.py

All strategies except peer move arrays between the ranks of an MPI job. Names that end in 16 transfer float16.
A strategy is a module, or a class in one, and an entry in EXCHANGES. The entry names a function that returns the
Strategy which the rule uses:

    connect(config, device, comm, shapes, warn, step=0) -> Strategy

device    an open device of multigpu.device
comm  multigpu.communicator.PipeCommunicator or multigpu.mpi.communicator.MpiCommunicator
shapes    shapes of the float32 arrays to exchange, the same in all workers
warn      (message) -> None, called on rank 0 only
connect() is collective. It raises ConfigError for invalid settings, and DeviceError.
"""

import pkgutil
from abc import ABC, abstractmethod

from alexnet.config import ConfigError, Section, check_known
from alexnet.config.fields import Text

EXCHANGES = {
    "peer": "multigpu.exchange.peer:connect",
    "ar": "multigpu.exchange.allreduce:connect",
    "allreduce": "multigpu.exchange.allreduce:connect",
    "asa32": "multigpu.exchange.asa:connect32",
    "asa16": "multigpu.exchange.asa:connect16",
    "copper": "multigpu.exchange.copper:connect32",
    "copper16": "multigpu.exchange.copper:connect16",
    "nccl32": "multigpu.exchange.nccl:connect32",
    "nccl16": "multigpu.exchange.nccl:connect16",
}


class ExchangeSettings(Section):
    """Which strategy averages arrays, and whether it sends rounding errors later."""

    exchange: Text
    error_feedback: bool


BETWEEN_HOSTS = "asa32"                          # meaning of auto if the workers run on several machines


class Strategy(ABC):
    """A flat buffer in each worker and a method that averages these buffers.

    device  the device that holds the buffer
    flat    multigpu.exchange.flat_buffer.FlatBuffer
    """

    @abstractmethod
    def average(self, step):
        """Replace the buffers of all workers by their mean, bit-identical in all of them. Collective.

        All pending transfers must have completed before this is called. Raises PeerDied, DesyncError.
        """

    @abstractmethod
    def close(self):
        """Close the buffers of the other workers, then free this worker's buffer. Collective."""


def strategy_of(config, comm):
    """Return the connect() function of the strategy in the settings.

    Raises:
        ConfigError: the strategy is unknown, or cannot be used with these settings or in this job.
    """
    settings = config.section(ExchangeSettings)
    name = settings.exchange
    if name == "auto":
        name = "peer" if comm.on_one_host else BETWEEN_HOSTS
    check_known(name, ("auto", *EXCHANGES), "exchange: there is no strategy")
    if name == "peer" and not comm.on_one_host:
        raise ConfigError(f"exchange=peer needs all workers on one machine; exchange={BETWEEN_HOSTS} does not")
    if name != "peer" and not comm.over_mpi:
        raise ConfigError(
            f"exchange={name} moves arrays over MPI, so the workers have to be started by it: "
            f"mpiexec -n {comm.size} python -m mpi4py train.py ... exchange={name}"
        )
    if settings.error_feedback and name != "asa16":
        raise ConfigError(
            f"error_feedback sends later what exchange=asa16 rounds away, got exchange={name}: "
            "take exchange=asa16, or error_feedback=false"
        )
    if name.startswith("nccl"):
        check_gpus(name, config, comm)
    try:
        return pkgutil.resolve_name(EXCHANGES[name])
    except ImportError as error:
        if not name.startswith("nccl"):
            raise
        cure = '`pip install -e ".[nccl]"` installs it where CUDA is'
        raise ConfigError(f"exchange={name} needs nccl4py, which cannot be imported ({error}); {cure}") from error


def check_gpus(name, config, comm):
    """Raise ConfigError if the settings assign no GPU to a rank, or the same GPU to two ranks."""
    devices = config.devices
    if "cpu" in devices:
        raise ConfigError(f"exchange={name} needs a GPU for each rank, got devices={','.join(devices)}")
    if "auto" not in devices and len(set(devices)) < comm.local_size:
        raise ConfigError(
            f"exchange={name} needs a GPU for each rank, because NCCL refuses to serve two ranks on one: "
            f"got devices={','.join(devices)} for {comm.local_size} ranks on {comm.hosts[comm.rank]}"
        )
