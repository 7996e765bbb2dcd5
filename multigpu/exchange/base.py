"""The interface of an exchange strategy, and the choice of one by the settings.

No module of this package imports MPI, NCCL, CUDA or JAX when it is imported: the registry imports all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from alexnet.config import Config, ConfigError, Registry, Section
from alexnet.config.fields import Text
from alexnet.config.unused import check_unused_settings
from alexnet.native.packages import MPI_TRAIN

if TYPE_CHECKING:
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.exchange.flat_buffer import FlatBuffer


class ExchangeSettings(Section):
    """Which strategy averages arrays."""

    exchange: Text


class ExchangeContext(NamedTuple):
    """What a strategy is opened with.

    Attributes:
        config: all settings.
        device: an open device, which is closed after the strategy.
        comm: connects the workers.
        shapes: of the float32 arrays to exchange, the same in all workers.
        warn: logs a warning; call it on rank 0 only.
        step: number of steps done before.
    """

    config: Config
    device: Device
    comm: Communicator
    shapes: Sequence[tuple[int, ...]]
    warn: Callable[[str], None]
    step: int = 0


class Strategy(ABC):
    """A flat buffer in each worker, and a method that averages these buffers.

    An implementation registers itself in STRATEGIES under its name.

    Attributes:
        flat: the buffer of this worker.
        device: the device that holds it.
    """

    settings: ClassVar[tuple[type[Section], ...]] = ()    # what this strategy reads, and no other
    needs_mpi: ClassVar[bool] = True                      # it needs the ranks of an MPI job
    needs_gpu: ClassVar[bool] = False                     # each rank needs a GPU that no other rank uses
    one_machine: ClassVar[bool] = False                   # all workers have to run on one machine
    preference: ClassVar[int] = 0                         # exchange=auto takes the highest that suits; 0: never
    overlaps: ClassVar[bool] = False                      # average() may run in a thread beside the computation
    gathers: ClassVar[bool] = False                       # it implements gather()

    def __init__(self, flat: FlatBuffer):
        self.flat = flat
        self.device = flat.device

    @classmethod
    def sections(cls) -> tuple[type[Section], ...]:
        """Return the settings that this strategy reads, and no other."""
        return cls.settings

    @classmethod
    def suits(cls, comm: Communicator) -> bool:
        """Return whether these workers are connected as the strategy requires."""
        return (comm.over_mpi or not cls.needs_mpi) and (comm.on_one_host or not cls.one_machine)

    @classmethod
    def check(cls, name: str, config: Config, comm: Communicator) -> None:
        """Raise ConfigError if the strategy, selected as exchange=name, cannot be used in this job."""
        if cls.one_machine and not comm.on_one_host:
            raise ConfigError(f"exchange={name} needs all workers on one machine; exchange=auto does not")
        if cls.needs_mpi and not comm.over_mpi:
            raise ConfigError(
                f"exchange={name} moves arrays over MPI, so the workers have to be started by it: "
                f"mpiexec -n {comm.size} {MPI_TRAIN} ... exchange={name}"
            )
        if cls.needs_gpu:
            check_gpus(name, config, comm)

    @classmethod
    @abstractmethod
    def connect(cls, context: ExchangeContext) -> Strategy:
        """Open the strategy in all workers. Collective.

        Raises:
            ConfigError: the workers' devices do not suit the strategy.
            DeviceError: a buffer cannot be allocated or opened.
        """

    @abstractmethod
    def average(self, step: int) -> None:
        """Replace the buffers of all workers by their mean, bit-identical in all of them. Collective.

        All pending transfers must have completed before this is called.

        Raises:
            PeerDied: another worker has exited.
            DesyncError: a worker is at another step, or data was lost.
            Overflow: a value does not fit into float16.
        """

    def gather(self, step: int) -> list[list[np.ndarray]]:
        """Return the arrays of each worker, in rank order, as arrays of the backend. Collective.

        All pending transfers must have completed before this is called. The arrays are valid until the next call.

        Raises:
            PeerDied, DesyncError: see average().
        """
        raise NotImplementedError(f"{type(self).__name__} does not gather")

    @abstractmethod
    def close(self) -> None:
        """Close the buffers of the other workers, then free this worker's buffer. Collective."""


STRATEGIES: Registry[type[Strategy]] = Registry("exchange", "strategy", "multigpu.exchange")


def strategy_settings() -> tuple[type[Section], ...]:
    """Return the sections that the strategies read."""
    return tuple(dict.fromkeys(kind for strategy in STRATEGIES.values() for kind in strategy.settings))


def strategy_of(config: Config, comm: Communicator) -> type[Strategy]:
    """Return the strategy of the settings.

    Raises:
        ConfigError: the strategy is unknown, or cannot be used with these settings or in this job.
    """
    name = config.section(ExchangeSettings).exchange
    if name == "auto":
        name = preferred_strategy(comm)
    strategy = STRATEGIES.find(name)
    strategy.check(name, config, comm)
    check_unused_settings(config, "exchange", name, strategy, STRATEGIES)
    return strategy


def preferred_strategy(comm: Communicator) -> str:
    """Return the name of the strategy that exchange=auto means for these workers."""
    return max((name for name in STRATEGIES if STRATEGIES[name].suits(comm)), key=lambda n: STRATEGIES[n].preference)


def check_gpus(name: str, config: Config, comm: Communicator) -> None:
    """Raise ConfigError if the settings assign no GPU to a rank, or the same GPU to two ranks."""
    devices = config.devices
    if "cpu" in devices:
        raise ConfigError(f"exchange={name} needs a GPU for each rank, got devices={','.join(devices)}")
    if "auto" not in devices and len(set(devices)) < comm.local_size:
        raise ConfigError(
            f"exchange={name} needs a GPU for each rank, because NCCL does not support two ranks on one GPU: "
            f"got devices={','.join(devices)} for {comm.local_size} ranks on {comm.hosts[comm.rank]}"
        )
