"""The interfaces of a rule: Rule, which describes it, and Synchronizer, which the training loop calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np

from alexnet.config import Config, ConfigError, Registry, Section
from alexnet.config.unused import check_unused_settings
from alexnet.run.timing import Lap
from alexnet.training.loop import Position, Run, train

if TYPE_CHECKING:
    from alexnet.run.recorder import Recorder
    from alexnet.training.network import Network
    from multigpu.communicator import Communicator
    from multigpu.device.base import Device


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


class StepResult(NamedTuple):
    """Result of a synchronised step: mean cost and error of the workers, and whether any worker has to stop."""

    cost: float
    error: float
    stop: bool


class Rule(ABC):
    """When workers exchange, and with whom. An implementation registers itself in RULES under its name."""

    settings: ClassVar[tuple[type[Section], ...]] = ()    # what this rule reads, and no other
    needs_mpi: ClassVar[bool] = True                      # it needs the ranks of an MPI job
    has_server: ClassVar[bool] = False                    # rank 0 is a server, and does not train
    elastic: ClassVar[bool] = False                       # training survives workers that join late, leave or die
    synchronous: ClassVar[bool] = False                   # all workers end each epoch at the same time

    def check(self, config: Config) -> None:
        """Raise ConfigError if the settings contradict each other under this rule."""
        if config.lr_policy == "auto" and not self.synchronous:
            raise ConfigError(
                f"lr_policy must not be auto with rule={config.rule}, whose workers wait for no validation"
            )
        if config.lr_scaling == "linear" and not self.averages_steps(config):
            raise ConfigError(
                f"lr_scaling must be none unless rule={config.rule} averages the updates of each step, got linear"
            )

    def averages_steps(self, config: Config) -> bool:
        """Return whether the workers' updates of a step are averaged, as lr_scaling=linear assumes."""
        return False

    def check_job(self, config: Config, comm: Communicator) -> None:
        """Raise ConfigError if the rule cannot be used by these workers."""
        if self.needs_mpi and not comm.over_mpi:
            raise ConfigError(
                f"rule={config.rule} works over MPI, so the workers have to be started by it: "
                f"mpiexec -n N python -m mpi4py train.py ... rule={config.rule}"
            )
        if self.has_server and comm.size < 2:
            raise ConfigError(f"rule={config.rule} needs a server and at least one worker, so 2 ranks or more, got 1")

    def step_functions(self, config: Config, comm: Communicator) -> tuple[str, ...]:
        """Return the names of the Network functions of a training step."""
        return ("train",)

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
    if not rule.has_server:
        return Role(rank, size, (rank, size), (*rule.step_functions(config, comm), "validate"))
    if rank == 0:
        return Role(0, size - 1, (0, 1), ("validate",))
    return Role(rank - 1, size - 1, (0, 1), rule.step_functions(config, comm))


class Synchronizer(ABC):
    """Synchronises a worker with the others. The training loop calls it between steps.

    As a context manager it calls close() on success. On an error it does not wait for other workers.
    """

    def run(self, run: Run, position: Position) -> Position:
        """Perform this rank's whole part: training, or serving the clients. Returns the final Position."""
        return train(run, position)

    @abstractmethod
    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        """Compute a step on this worker's batch, including the update or up to the gradients; returns cost and error.

        Args:
            inputs: images, with their crops unless the loader has cropped them, and labels.
            rate: the learning rate.
        """

    @abstractmethod
    def after_step(self, step: int, cost: float, error: float, rate: float, stop: bool, last: bool) -> StepResult:
        """Exchange with the other workers, if the rule requires it after this step.

        Waiting for other workers counts as sync, the rest as comm. For a step without synchronisation, the result
        contains this worker's cost and error, and stop is False.

        Args:
            step: counts from 1 and continues in a resumed run.
            rate: the learning rate of the update.
            stop: whether this worker was requested to stop.
            last: whether an operation of all workers follows: the end of an epoch, or a checkpoint.

        Raises:
            PeerDied, DesyncError
        """

    def consensus(self, stop: bool = False) -> AbstractContextManager[bool]:
        """Return a context in which the network holds the state of the whole job, for validation and saving.

        All workers that validate or save enter the context. Its value is True if any worker has to stop. In that case
        all workers end there: the state in the network is saved, and no further exchange follows. Most rules do
        nothing here, because after the `last` step all workers have the same state and stop after the same step.

        Args:
            stop: whether this worker enters because it was requested to stop.
        """
        return nullcontext(False)

    def gather(self, lap: Lap) -> list[Lap]:
        """Return the timing of each worker, as known to rank 0; an empty list on other ranks."""
        return [lap]

    @abstractmethod
    def total(self, values: np.ndarray, stop: bool) -> tuple[np.ndarray, bool]:
        """Return each value summed over all workers in float64, and whether any worker has to stop. Collective."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources, in the order that CUDA requires: memory of other workers before they free it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if kind is None:
            self.close()
