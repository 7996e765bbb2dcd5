"""Strategies: how the workers' arrays become their mean; when, and with whom, is a rule's: multigpu.rules.

    peer             each worker reads and writes the others' memory itself; one machine       peer.py
    ar, allreduce    MPI's own Allreduce                                                      allreduce.py
    asa32, asa16     all to all, sum on the owner of a piece, all gather                      asa.py
    copper, copper16 a binary tree                                                            copper.py
    nccl32, nccl16   NCCL's allreduce on the GPUs                                             nccl.py

All but peer move arrays between ranks of an MPI job; names that end in 16 have float16 on the wire.
A strategy is a file, or a class of one, and a line in EXCHANGES.  connect(...) of its line makes the Strategy that a
rule is handed:

    connect(config, device, partners, shapes, warn, step=0) -> Strategy

device    of multigpu.device, open     partners  multigpu.partners.Partners, or multigpu.mpi's
shapes    of the float32 arrays that are exchanged, alike in all workers
warn      (sentence) -> None, called at rank 0 alone
Raises ConfigError for what cannot be, DeviceError.
"""

import pkgutil
from abc import ABC, abstractmethod

from alexnet.config import ConfigError, check_known

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
BETWEEN_HOSTS = "asa32"                          # what auto means where not all workers share a machine


class Strategy(ABC):
    """A flat buffer in each worker, and the way in which all of them become their mean.

    device  that the buffer lies on
    flat    multigpu.exchange.flat.Flat
    """

    @abstractmethod
    def average(self, step):
        """Replace the buffers of all workers by their mean, alike to the bit; every worker calls it.

        Nobody's buffer may be under way when the last of them calls it.  Raises PartnerDied, OutOfStep.
        """

    @abstractmethod
    def close(self):
        """Let go of the others' memory, then free one's own; every worker calls it."""


def strategy_of(config, partners):
    """The connect() of the settings' strategy; raises ConfigError for one that is not there, or cannot be here."""
    name = config.exchange
    if name == "auto":
        name = "peer" if partners.on_one_host else BETWEEN_HOSTS
    check_known(name, ("auto", *EXCHANGES), "exchange: there is no strategy")
    if name == "peer" and not partners.on_one_host:
        raise ConfigError(f"exchange=peer needs all workers on one machine; exchange={BETWEEN_HOSTS} does not")
    if name != "peer" and not partners.over_mpi:
        raise ConfigError(
            f"exchange={name} moves arrays over MPI, so the workers have to be started by it: "
            f"mpiexec -n {partners.size} python -m mpi4py train.py ... exchange={name}"
        )
    if config.error_feedback and name != "asa16":
        raise ConfigError(
            f"error_feedback sends later what exchange=asa16 rounds away, got exchange={name}: "
            "take exchange=asa16, or error_feedback=false"
        )
    if name.startswith("nccl"):
        check_gpus(name, config, partners)
    try:
        return pkgutil.resolve_name(EXCHANGES[name])
    except ImportError as error:
        if not name.startswith("nccl"):
            raise
        cure = '`pip install -e ".[nccl]"` installs it where CUDA is'
        raise ConfigError(f"exchange={name} needs nccl4py, which cannot be imported ({error}); {cure}") from error


def check_gpus(name, config, partners):
    """Raise ConfigError where the settings give a rank no GPU, or two ranks one."""
    devices = config.devices
    if "cpu" in devices:
        raise ConfigError(f"exchange={name} needs a GPU for each rank, got devices={','.join(devices)}")
    if "auto" not in devices and len(set(devices)) < partners.local_size:
        raise ConfigError(
            f"exchange={name} needs a GPU for each rank, because NCCL refuses to serve two ranks on one: "
            f"got devices={','.join(devices)} for {partners.local_size} ranks on {partners.hosts[partners.rank]}"
        )
