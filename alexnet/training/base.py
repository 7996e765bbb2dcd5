"""What the training loop requires of its parts: Batches, Synchronizer and Recorder.

One worker, two GPUs and an MPI job differ only in the Synchronizer.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self

import numpy as np

from alexnet.data.dataset import Request
from alexnet.training.loop import Position, Run, train
from alexnet.training.timing import Lap


class Batches(ABC):
    """Reads batches, usually ahead of the training loop."""

    @abstractmethod
    def read(self, requests: Iterable[Request]) -> Iterator[np.ndarray]:
        """Yield the images of each request; an array is valid until the next one is yielded."""


class StepResult(NamedTuple):
    """Result of a synchronised step: mean cost and error of the workers, and whether any worker has to stop."""

    cost: float
    error: float
    stop: bool


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
