"""The training loop, shared by single-worker, two-GPU and MPI runs.

The caller passes in the parts that differ between these runs: the batches, the Synchronizer and the recorder. A
Position and the state of the network together form a checkpoint.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alexnet.data.augment import colour_stream, resized_crop_stream
from alexnet.data.colour import PrincipalColours, draw_colour_offsets
from alexnet.data.dataset import (
    Crop,
    DataError,
    Dataset,
    Request,
    Split,
    centre_crop,
    crop_stream,
    draw_crop,
    file_order,
)
from alexnet.data.resized_crop import ResizedCrop, draw_resized_crop
from alexnet.training.schedules import learning_rate

if TYPE_CHECKING:                                # the loader imports this module, without settings and PyTensor
    from alexnet.config import Config
    from alexnet.training.base import Batches, Recorder, Synchronizer  # it imports this module
    from alexnet.training.network import Network  # it imports PyTensor, which the launcher does not need


class Diverged(ArithmeticError):
    """The cost, a parameter or a velocity is not finite."""


class InputLost(RuntimeError):
    """The images of a batch do not arrive any more; the state of the training is intact."""


class StoppedWhileWaiting(Exception):
    """A stop was requested while this worker waited for images that do not arrive."""


class StepAbandoned(Exception):
    """The workers have agreed to end after `iteration`, because one of them cannot do the next step; that one saves."""

    def __init__(self, iteration: int):
        super().__init__(f"training ends after iteration {iteration}")
        self.iteration = iteration


class Position(NamedTuple):
    """Progress of the training, between two steps."""

    epoch: int = 0                      # completed epochs
    batch: int = 0                      # completed steps in this epoch
    iteration: int = 0                  # completed steps in total
    errors: tuple[float, ...] = ()      # top-1 validation error after each completed epoch, in [0, 1]


class Observer:
    """Receives inputs of steps, predictions of validations, and the ends of epochs. This one ignores them."""

    def step_begins(self, iteration: int, inputs: tuple[np.ndarray, ...]) -> None:
        """Receive the inputs of the step `iteration`, of its last micro-batch: images, augmentation, labels."""

    def step_ended(self, iteration: int) -> None:
        """Receive the end of a step, which has been recorded."""

    def validation_began(self) -> None:
        """Forget what an interrupted validation has predicted."""

    def validated(self, images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
        """Receive a validation batch: the inputs of the network, labels int32 (batch,), logits (class, batch)."""

    def epoch_ended(self, position: Position) -> None:
        """Receive the Position after an epoch, which its validation has recorded."""

    def run_ended(self, position: Position) -> None:
        """Receive the Position at which the run has ended, perhaps within an epoch."""


class Run(NamedTuple):
    """The parts of a training run.

    save            writes a checkpoint
    stop_requested  returns whether this worker has been asked to stop; all workers stop after the same step
    rank            rank of this worker, which selects its random streams
    rescue          writes a checkpoint of this worker's state, which all workers share, without a call of the others
    observers       of rank 0: the report, the statistics
    advanced        is called with the Position after each step, and after the end of each epoch
    colours         principal components of the training images with pca_colour, else None
    """

    config: Config
    network: Network
    data: Dataset
    batches: Batches
    synchronizer: Synchronizer
    recorder: Recorder
    save: Callable[[Position], None]
    stop_requested: Callable[[], bool]
    rank: int = 0
    rescue: Callable[[Position], None] = lambda position: None
    observers: tuple[Observer, ...] = ()
    advanced: Callable[[Position], None] = lambda position: None
    colours: PrincipalColours | None = None


class TrainingBatch(NamedTuple):
    """A micro-batch before it is read: the request to the loader, and what the worker adds to the images."""

    request: Request
    crop: Crop | ResizedCrop            # of each image, applied by the loader or in the graph
    labels: np.ndarray                  # int32 (batch,)
    position: int = 0                   # in its step
    colour_offsets: np.ndarray | None = None        # float32 (3, batch), added where the crop is applied

    def inputs(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the inputs of a compiled function for `images`, with the augmentation unless the loader applies it."""
        if self.request.crop:
            return images, self.labels
        offsets = () if self.colour_offsets is None else (self.colour_offsets,)
        return images, *self.crop, *offsets, self.labels


def train(run: Run, position: Position = Position()) -> Position:
    """Train from `position` until the last epoch, n_iterations, a stop or an error. Returns the final position.

    Raises:
        Diverged: a cost is not finite.
        DataError, InputLost: a batch cannot be read. If the workers agree on a state, it has been saved.
    """
    try:
        return train_and_save(run, position)
    except StepAbandoned as end:
        return position._replace(iteration=end.iteration)


def train_and_save(run: Run, position: Position) -> Position:
    """Train as train() does; raises StepAbandoned where another worker saves."""
    saved = None
    _, stop = run.synchronizer.total(np.zeros(1), run.stop_requested())    # a stop requested during startup
    while not stop and position.epoch < run.config.n_epochs and not at_limit(run, position):
        position, stop = train_epoch(run, position)
        if position.batch:                                  # stopped within the epoch
            break
        if position.epoch % run.config.snapshot_freq == 0:
            stop, saved = save(run, position, stop) or stop, position
    if saved != position:
        save(run, position, stop)
    return position


def save(run: Run, position: Position, stop: bool = False) -> bool:
    """Save the state that represents all workers. Returns whether all workers have agreed to stop.

    Args:
        stop: whether this worker saves because it stops.
    """
    with run.synchronizer.consensus(stop) as stop:
        run.recorder.phase("saving")
        run.save(position)
    return stop


def at_limit(run: Run, position: Position) -> bool:
    """Return whether training has done n_iterations."""
    limit = run.config.n_iterations
    return limit is not None and position.iteration >= limit


def at_snapshot(run: Run, position: Position) -> bool:
    """Return whether a checkpoint is due because of snapshot_iterations."""
    every = run.config.snapshot_iterations
    return every is not None and position.iteration % every == 0


def train_epoch(run: Run, position: Position) -> tuple[Position, bool]:
    """Run the remaining steps of an epoch and validate. Returns the new position, and whether training stopped."""
    batches, steps = training_batches(run, position)
    stop = False
    try:
        for batch, images in read(run, batches):
            if batch.position < run.config.micro_batches - 1:
                accumulate(run, position, steps, batch, images)
                continue
            position, stop = train_step(run, position, steps, batch, images)
            ends = position.batch < steps and (stop or at_limit(run, position))
            if at_snapshot(run, position) and not ends:     # otherwise the final checkpoint follows
                stop = save(run, position, stop) or stop
            if stop or ends:
                break
    except StoppedWhileWaiting:
        if run.synchronizer.in_lockstep:                    # otherwise this worker may stop between any two steps
            end_without_step(run, position)
            raise StepAbandoned(position.iteration) from None
        return position, True
    except (DataError, InputLost) as error:
        try:
            end_without_step(run, position)
        except InputLost as unsaved:
            raise type(error)(f"{error}; {unsaved}") from error
        raise
    return end_epoch(run, position, stop) if position.batch == steps else (position, stop)


def end_without_step(run: Run, position: Position) -> None:
    """Save the state at `position` if this worker holds it for the whole job but cannot read its next batch.

    Workers in lockstep return once one of them has saved: the first to report its error ends the others.

    Raises:
        InputLost: the workers have no common state.
    """
    if run.synchronizer.abandon(position.iteration + 1):
        try:
            run.rescue(position)
        except (ValueError, ArithmeticError) as error:      # CheckpointError, Diverged: the first error ends the run
            run.recorder.warn(error)
    if run.synchronizer.in_lockstep:
        run.synchronizer.total(np.zeros(1), True)


def end_epoch(run: Run, position: Position, stop: bool = False) -> tuple[Position, bool]:
    """Validate after the last step of an epoch. Returns the new position, and whether training stopped."""
    after = position._replace(epoch=position.epoch + 1, batch=0)
    if run.config.validation:
        error = None if stop else validate(run, position)
        if error is None:
            return position, True
        after = after._replace(errors=(*position.errors, error))
    for observer in run.observers:
        observer.epoch_ended(after)
    run.advanced(after)
    return after, stop


def accumulate(run: Run, position: Position, steps: int, batch: TrainingBatch, images: np.ndarray) -> None:
    """Add a micro-batch to the gradients of the step after `position`, whose last micro-batch train_step() receives.

    Args:
        steps: of a worker in the whole epoch.

    Raises:
        Diverged: the cost is not finite.
    """
    with run.recorder.time("calc"):
        cost = run.network.accumulate(*batch.inputs(images), np.int64(batch.position))
    with run.recorder.time("sync"):
        cost = float(cost)                                  # a GPU may still be computing it
    check_cost(cost, rate_at(run, position, steps), position._replace(iteration=position.iteration + 1), batch)


def rate_at(run: Run, position: Position, steps: int) -> float:
    """Return the learning rate of the step after `position`, in an epoch of `steps` steps."""
    return learning_rate(run.config, position.epoch + position.batch / steps, position.errors, run.data.train.size)


def train_step(
    run: Run, position: Position, steps: int, batch: TrainingBatch, images: np.ndarray
) -> tuple[Position, bool]:
    """Run one step: compute, synchronise, record. Returns the position after it, and whether to stop.

    After a synchronised step the recorded cost and error are those of all workers.

    Args:
        steps: of a worker in the whole epoch.
        batch: the last micro-batch of the step.

    Raises:
        Diverged: the cost is not finite.
    """
    rate = rate_at(run, position, steps)
    after = position._replace(batch=position.batch + 1, iteration=position.iteration + 1)
    inputs = batch.inputs(images)
    for observer in run.observers:
        observer.step_begins(after.iteration, inputs)
    with run.recorder.time("calc"):
        cost, error = run.synchronizer.step(*inputs, rate=np.float32(rate))
    with run.recorder.time("sync"):
        cost, error = float(cost), float(error)             # a GPU may still be computing them
    check_cost(cost, rate, after, batch)
    last = after.batch == steps or at_limit(run, after) or at_snapshot(run, after)
    result = run.synchronizer.after_step(after.iteration, cost, error, rate, run.stop_requested(), last)
    run.advanced(after)
    run.recorder.train_iteration(
        iteration=after.iteration,
        epoch=position.epoch + after.batch / steps,
        cost=result.cost,
        error=result.error,
        learning_rate=rate,
        images=len(batch.labels) * run.config.micro_batches * run.data.train.size,
    )
    for observer in run.observers:
        observer.step_ended(after.iteration)
    if lap := run.recorder.take_lap():
        run.recorder.laps(run.synchronizer.gather(lap))
    return after, result.stop


def check_cost(cost: float, rate: float, position: Position, batch: TrainingBatch) -> None:
    """Raise Diverged if the cost of the step to `position` is not finite.

    Call it before the exchange, so that no other worker averages with this state.
    """
    if not math.isfinite(cost):
        files = ", ".join(str(segment.path) for segment in batch.request.segments)
        raise Diverged(
            f"the cost became {cost} at iteration {position.iteration}, in epoch {position.epoch + 1}, on {files}; "
            f"a lower learning_rate than {rate:g} or a look at that file's images may help"
        )


def validate(run: Run, position: Position) -> float | None:
    """Compute and record cost and errors over all validation images. Returns the top-1 error, or None if stopped.

    Each worker validates its share of the images; the sums are identical on all workers.

    Raises:
        Diverged: the cost is not finite.
        DataError, InputLost: this worker cannot read its images; the state has been saved.
    """
    totals = np.zeros(4)                                    # sums of cost, top-1 error and top-5 error; images
    failure: Exception | None = None
    with run.synchronizer.consensus(run.stop_requested()) as stop:
        if stop:
            return None
        n = max(run.data.validation.n, 1)
        for observer in run.observers:
            observer.validation_began()
        try:
            for batch, images in read(run, validation_batches(run)):
                if run.stop_requested():
                    break
                run.recorder.phase("validation", run.data.validation.size * totals[3] / n)
                *figures, logits = run.network.validate(*batch.inputs(images))
                totals += len(batch.labels) * np.array([*figures, 1], dtype=float)
                for observer in run.observers:
                    observer.validated(images, batch.labels, logits)
        except (DataError, InputLost) as error:
            failure = error
            totals[3] = math.nan                            # notifies the other workers
        except StoppedWhileWaiting:
            pass
    with run.recorder.time("comm"):
        totals, stop = run.synchronizer.total(totals, run.stop_requested())
    if math.isnan(totals[3]):
        save(run, position)
        run.synchronizer.total(np.zeros(1), True)           # all wait until it is saved
        if failure is None:
            raise StepAbandoned(position.iteration)
        raise failure
    if stop:
        return None
    n = int(totals[3])
    cost, top1_error, top5_error = (totals[:3] / n).tolist()
    if not math.isfinite(cost):
        raise Diverged(f"the validation cost became {cost} after epoch {position.epoch + 1}; lower the learning_rate")
    rate = learning_rate(run.config, position.epoch, position.errors, run.data.train.size)
    run.recorder.epoch(
        epoch=position.epoch + 1,
        iteration=position.iteration,
        cost=cost,
        top1_error=top1_error,
        top5_error=top5_error,
        learning_rate=rate,
        images=n,
    )
    return top1_error


def read(run: Run, batches: Iterator[TrainingBatch]) -> Iterator[tuple[TrainingBatch, np.ndarray]]:
    """Yield pairs of a TrainingBatch and its images, and record the time spent waiting for the loader.

    The image array is valid until the next pair.
    """
    batches, ahead = itertools.tee(batches)
    images = run.batches.read(batch.request for batch in ahead)
    for batch in batches:
        with run.recorder.time("wait"):
            pixels = next(images)
        yield batch, pixels


def steps_of_epoch(run: Run) -> int:
    """Return the number of steps of a worker in an epoch."""
    return len(run.data.train.plan(run.config.batch_size))


def training_batches(run: Run, position: Position) -> tuple[Iterator[TrainingBatch], int]:
    """Return the remaining micro-batches of the epoch, and the number of steps in the whole epoch."""
    size = run.network.model.image_size
    return epoch_batches(run.config, run.data.train, size, position, run.rank, run.colours)


def epoch_batches(
    config: Config, split: Split, image_size: int, position: Position, rank: int = 0,
    colours: PrincipalColours | None = None,
) -> tuple[Iterator[TrainingBatch], int]:
    """Return the same as training_batches() for the shard of worker `rank`, without the other parts of a Run.

    Args:
        image_size: of the network's input, in pixels.
        colours: principal components of the training images with pca_colour, else None.
    """
    order = file_order(config.random_seed, position.epoch, len(split.files), config.shuffle)
    parts, size = config.micro_batches, config.images_at_once
    plan = split.plan(config.batch_size, order, parts=parts)
    first = position.iteration - position.batch

    def batches() -> Iterator[TrainingBatch]:
        for step in range(position.batch, len(plan) // parts):
            crops = training_crop(config, image_size, rank, first + step)
            step_offsets = training_colour_offsets(config, colours, rank, first + step)
            for part in range(parts):
                segments, labels = plan[step * parts + part]
                images = slice(part * size, (part + 1) * size)
                crop = crops.part(images)
                offsets = None if step_offsets is None else np.ascontiguousarray(step_offsets[:, images])
                request = Request(segments) if config.use_data_layer else Request(segments, crop, offsets)
                yield TrainingBatch(request, crop, labels, part, offsets)

    return batches(), len(plan) // parts


def training_crop(config: Config, image_size: int, rank: int, iteration: int) -> Crop | ResizedCrop:
    """Return the crop of each image of a step's batch."""
    if not config.rand_crop:
        return centre_crop(config.batch_size, image_size)
    if config.random_resized_crop is not None:
        generator = resized_crop_stream(config.random_seed, rank, iteration)
        return draw_resized_crop(generator, config.batch_size, config.random_resized_crop, config.batch_crop_mirror)
    generator = crop_stream(config.random_seed, rank, iteration)
    return draw_crop(generator, config.batch_size, image_size, config.batch_crop_mirror)


def training_colour_offsets(
    config: Config, colours: PrincipalColours | None, rank: int, iteration: int
) -> np.ndarray | None:
    """Return the colour offsets of a step's batch, float32 (3, batch), or None without pca_colour."""
    if colours is None:
        return None
    generator = colour_stream(config.random_seed, rank, iteration)
    return draw_colour_offsets(generator, config.batch_size, colours, config.pca_colour)


def validation_batches(run: Run) -> Iterator[TrainingBatch]:
    """Yield every validation image once, centre-cropped; the last batch may be smaller."""
    size = run.network.model.image_size
    in_graph = run.config.use_data_layer
    for segments, labels in run.data.validation.plan(run.config.images_at_once, keep_last=True):
        crop = centre_crop(len(labels), size)
        yield TrainingBatch(Request(segments, None if in_graph else crop), crop, labels)
