"""The interface of a rule. Its Synchronizer, which the training loop calls, is in alexnet.training.base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from alexnet.config import Config, ConfigError, Registry, Section
from alexnet.config.unused import check_unused_settings
from alexnet.native.packages import MPI_TRAIN
from alexnet.training.base import Synchronizer
from alexnet.training.update_settings import WeightAverageSettings

if TYPE_CHECKING:
    from alexnet.training.base import Recorder
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device


class Role(NamedTuple):
    """The part of a job that a rank performs.

    worker, workers  index of the worker and number of workers: they determine the shard of the training images and the
                     seed of the random streams; a server has the values of the first worker, but uses neither
    validates        (rank, size): the rank's share of the validation images
    functions        names of the Network functions that the rank calls
    """

    worker: int
    workers: int
    validates: tuple[int, int]
    functions: tuple[str, ...]


class Rule(ABC):
    """When workers exchange, and with whom. An implementation registers itself in RULES under its name."""

    settings: ClassVar[tuple[type[Section], ...]] = ()    # what this rule reads, and no other; see sections()
    needs_mpi: ClassVar[bool] = True                      # it needs the ranks of an MPI job
    has_server: ClassVar[bool] = False                    # rank 0 is a server, and does not train
    elastic: ClassVar[bool] = False                       # training survives workers that join late, leave or die
    synchronous: ClassVar[bool] = False                   # all workers end each epoch at the same time
    combines_batches: ClassVar[bool] = False              # N workers do the steps of one with N times the batch size

    @classmethod
    def sections(cls) -> tuple[type[Section], ...]:
        """Return the settings that this rule reads, and no other."""
        return cls.settings

    def check(self, config: Config) -> None:
        """Raise ConfigError if the settings contradict each other under this rule."""
        ema_decay = config.section(WeightAverageSettings).ema_decay
        if ema_decay and not self.combines_batches:
            raise ConfigError(
                f"ema_decay must be 0 with rule={config.rule}, whose workers have no common weights in each step, got "
                f"{ema_decay:g}"
            )
        if config.lr_policy == "auto" and not self.synchronous:
            raise ConfigError(
                f"lr_policy must not be auto with rule={config.rule}, whose workers wait for no validation"
            )
        if config.lr_scaling == "linear" and not self.averages_steps(config):
            raise ConfigError(
                f"lr_scaling must be none unless rule={config.rule} averages the updates of each step, got linear"
            )

    def state(self, network: Network, config: Config) -> list[SharedVariable]:
        """Return new shared variables that the rule changes and that belong in checkpoints, such as an outer momentum.

        They are equal on all workers whenever a checkpoint is saved. A run that is resumed with another rule drops
        those of the former rule, and starts with the values here.
        """
        return []

    def averages_steps(self, config: Config) -> bool:
        """Return whether the workers' updates of a step are averaged, as lr_scaling=linear assumes."""
        return False

    def check_job(self, config: Config, comm: Communicator) -> None:
        """Raise ConfigError if the rule cannot be used by these workers."""
        if self.needs_mpi and not comm.over_mpi:
            raise ConfigError(
                f"rule={config.rule} works over MPI, so the workers have to be started by it: "
                f"mpiexec -n N {MPI_TRAIN} ... rule={config.rule}"
            )
        if self.has_server and comm.size < 2:
            raise ConfigError(f"rule={config.rule} needs a server and at least one worker, so 2 ranks or more, got 1")

    def step_functions(self, config: Config, comm: Communicator) -> tuple[str, ...]:
        """Return the names of the Network functions of a training step."""
        return ("train",)

    def configure(self, config: Config, network: Network, comm: Communicator) -> None:
        """Choose what the network computes for this rule, before it is compiled. The default changes nothing."""
        return None

    @abstractmethod
    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Synchronizer:
        """Return the Synchronizer of this rank. Collective.

        Args:
            network: with its state set: initial weights, or those of the checkpoint.
            device: an open device; it is closed after the Synchronizer.
            step: number of steps done before.

        Raises:
            ConfigError: the workers have different settings or weights.
            PeerDied, DesyncError, DeviceError
        """


RULES: Registry[type[Rule]] = Registry("rule", "rule", "multigpu.rules")


def check_rule(config: Config) -> Rule:
    """Return the rule of the settings.

    Raises:
        ConfigError: there is no such rule, settings contradict it, or a setting of another rule is given.
    """
    rule = RULES.find(config.rule)()
    check_unused_settings(config, "rule", config.rule, rule, RULES)
    rule.check(config)
    return rule


def role_of(rule: Rule, config: Config, comm: Communicator) -> Role:
    """Return the Role of this rank."""
    rank, size = comm.rank, comm.size
    step = (*(("accumulate",) if config.micro_batches > 1 else ()), *rule.step_functions(config, comm))
    if not rule.has_server:
        return Role(rank, size, (rank, size), (*step, "validate"))
    if rank == 0:
        return Role(0, size - 1, (0, 1), ("validate",))
    return Role(rank - 1, size - 1, (0, 1), step)
