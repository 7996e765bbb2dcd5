"""What the training loop requires of its parts: Batches, Synchronizer and Recorder.

One worker, two GPUs and an MPI job differ only in the Synchronizer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from alexnet.data.dataset import Request
from alexnet.training.loop import Position, Run, train
from alexnet.training.timing import Lap, Stopwatch

Record: TypeAlias = dict[str, Any]               # field -> number, or None; and `kind` and `at`, which are text


class Batches(ABC):
    """Reads batches, usually ahead of the training loop."""

    @abstractmethod
    def read(self, requests: Iterable[Request]) -> Iterator[np.ndarray]:
        """Yield the images of each request; an array is valid until the next one is yielded."""


class Recorder(Stopwatch, ABC):
    """Measures the time of a worker and receives its records and messages. A context manager.

    Attributes:
        keep: receives each train record as a dict, so that rank 0 can record a step that it has not done, with
            train_iteration(**record). Only a WorkerRecorder calls it.
        recorded: the iteration of the last train record.
        failure: why a file could not be written; training stops, saves and ends because of it.
    """

    keep: Callable[[Record], None] | None = None
    recorded: int = 0
    failure: OSError | None = None

    @abstractmethod
    def log(self, message: str, screen: bool = True) -> None:
        """Log a line, and print it if `screen`."""

    def phase(self, name: str, share: float | None = None) -> None:
        """Show on a terminal what the run is doing: validation or saving. Records of steps show that it is training.

        Args:
            share: the part of it that is done, 0 to 1.
        """
        return None

    @abstractmethod
    def warn(self, message: object) -> None:
        """Log a warning, given as text or as an exception."""

    @abstractmethod
    def train_iteration(
        self, *, iteration: int, epoch: float, cost: float, error: float, learning_rate: float, images: int,
        times: Mapping[str, float] | None = None, worker: int | None = None,
    ) -> None:
        """Record a finished step. All time since the previous iteration counts towards this one.

        Args:
            epoch: completed epochs, may be fractional: 1.5 is half of the second epoch.
            cost: of the batch, in nats.
            error: top-1 error of the batch, in [0, 1].
            images: images of all workers in this step.
            times: TIMES of the step, if another worker ran it without synchronising; None: measured by this recorder.
            worker: rank of that worker; None for a synchronised step.
        """

    @abstractmethod
    def epoch(
        self, *, epoch: int, iteration: int, cost: float, top1_error: float, top5_error: float, learning_rate: float,
        images: int,
    ) -> None:
        """Record a validation after `epoch` whole epochs. Cost and errors are means over `images` images."""

    @abstractmethod
    def laps(self, laps: Sequence[Lap]) -> None:
        """Record Laps that ended together, one for each known worker. An empty list records nothing.

        The recorded times are means over these workers, in seconds per 5,120 images; `slowest` is the slowest worker's.
        """

    @abstractmethod
    def record(self, kind: str, **values: float | None) -> None:
        """Record values of a kind that a rule defines. All records of a kind have the same fields.

        Args:
            kind: name of the kind, and of its CSV file.
            values: `iteration`, the step after which truncate() keeps the record, and others.

        Raises:
            ValueError: `iteration` is missing, or the fields differ from those of the first record.
        """

    @abstractmethod
    def truncate(self, iteration: int, epochs: int | None = None) -> None:
        """Remove the records that a killed run wrote after the checkpoint of `iteration`, to keep curves continuous.

        Args:
            epochs: validations completed at the checkpoint; None keeps those up to its iteration.
        """

    def close(self) -> None:
        """Close the files. A new recorder of the same folder can append more records."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StepResult(NamedTuple):
    """Result of a synchronised step: mean cost and error of the workers, and whether any worker has to stop."""

    cost: float
    error: float
    stop: bool


class Synchronizer(ABC):
    """Synchronises a worker with the others. The training loop calls it between steps.

    As a context manager it calls close() on success. On an error it does not wait for other workers.

    Attributes:
        in_lockstep: whether all workers do the same steps, so that a worker cannot end before a step that others do.
    """

    in_lockstep: bool = False

    def begin(self, position: Position) -> Position:
        """Return the Position at which this worker begins; position: that of its checkpoint, or the first.

        A replacement of a worker that has died begins where its peers are.
        """
        return position

    def run(self, run: Run, position: Position) -> Position:
        """Perform this rank's whole part: training, or serving the clients. Returns the final Position."""
        return train(run, position)

    @abstractmethod
    def step(self, *inputs: np.ndarray, rate: np.float32) -> tuple[float, float]:
        """Compute a step on this worker's batch, including the update or up to the gradients; returns cost and error.

        Args:
            inputs: images, with their augmentation unless the loader has applied it, and labels.
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

    def abandon(self, step: int) -> bool:
        """Notify the workers that may be in `step` that this worker cannot do it, and that all end before it.

        The others raise StepAbandoned from after_step(). The default notifies no worker.

        Returns:
            Whether this worker holds the state of the whole job after the step before, and saves it.
        """
        return False

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
