"""The one training loop.

It is handed what differs between one worker, two GPUs and an MPI job: the batches, the exchange and the
recorder.  Where training stands is a Position; together with the state of the network it is a checkpoint.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from alexnet.data import Crop, Request, centre_crop, crop_stream, draw_crop, file_order
from alexnet.schedules import learning_rate


class Diverged(ArithmeticError):
    """The cost is no longer a number."""


class Position(NamedTuple):
    """Where training stands, between two steps."""

    epoch: int = 0                      # epochs done
    batch: int = 0                      # steps done in this epoch
    iteration: int = 0                  # steps done in all
    errors: tuple[float, ...] = ()      # top-1 validation error after each epoch done, in [0, 1]


class Run(NamedTuple):
    """What a training run holds on to.

    network         alexnet.compile.Network
    data            alexnet.data.Dataset
    batches         .read(requests) yields the images of each; multigpu.loader
    exchange        what goes on with the other workers, if there are any:
                    .step(*images, labels, rate=) -> cost, error: computes a step of this worker
                    .after_step(step, cost, error, rate, stop, last) -> Agreed, with .cost, .error and .stop: ends step
                    number `step`, and counts its own time; `last`: validation or a checkpoint follows
                    .gather(lap) -> the Laps of the workers that are known at rank 0; [] elsewhere
                    .consensus(stop) -> a context in which the network holds what stands for all workers; its value:
                    whether all have agreed there to stop, and meet no more
                    .total(values, stop) -> the float64 values summed over the workers, and whether any wants to stop
    recorder        alexnet.recorder.Recorder
    save            (Position) -> None: writes a checkpoint
    stop_requested  () -> bool: whether this worker was asked to stop; all stop after the same step
    rank            of this worker, for its random streams
    """

    config: Any
    network: Any
    data: Any
    batches: Any
    exchange: Any
    recorder: Any
    save: Any
    stop_requested: Any
    rank: int = 0


class Batch(NamedTuple):
    """One batch before it is read: what to ask the loader for, and what the worker adds to the images."""

    request: Request
    crop: Crop                          # of each image, wherever the cropping happens
    labels: np.ndarray                  # int32 (batch,)

    def inputs(self, images):
        """The arguments of a compiled function for `images`: the crop too, unless the loader has done it."""
        return (images, self.labels) if self.request.crop else (images, *self.crop, self.labels)


def train(run, position=Position()):
    """Train from `position` until the last epoch, n_iterations, a stop or Diverged; returns where it ended."""
    saved, stop = None, run.exchange.total(np.zeros(1), run.stop_requested())[1]     # asked while all this started
    while not stop and position.epoch < run.config.n_epochs and not at_limit(run, position):
        position, stop = train_epoch(run, position)
        if position.batch:                                  # stopped within the epoch
            break
        if position.epoch % run.config.snapshot_freq == 0:
            stop, saved = save(run, position, stop) or stop, position
    if saved != position:
        save(run, position, stop)
    return position


def save(run, position, stop=False):
    """Save what stands for all workers; returns whether all have agreed to stop with it.

    stop  whether this worker enters because it stops
    """
    with run.exchange.consensus(stop) as stop:
        run.save(position)
    return stop


def at_limit(run, position):
    limit = run.config.n_iterations
    return limit is not None and position.iteration >= limit


def at_snapshot(run, position):
    every = run.config.snapshot_iterations
    return every is not None and position.iteration % every == 0


def train_epoch(run, position):
    """The rest of an epoch, steps and validation; returns the position after it or where it stopped, and if it did."""
    batches, steps = training_batches(run, position)
    stop = False
    for batch, images in read(run, batches):
        position, stop = train_step(run, position, steps, batch, images)
        ends = position.batch < steps and (stop or at_limit(run, position))
        if at_snapshot(run, position) and not ends:         # at an end a checkpoint follows anyway
            stop = save(run, position, stop) or stop
        if stop or ends:
            break
    return end_epoch(run, position, stop) if position.batch == steps else (position, stop)


def end_epoch(run, position, stop=False):
    """Validate after an epoch's last step; returns the position after it, or where it stopped, and if it did."""
    after = position._replace(epoch=position.epoch + 1, batch=0)
    if not run.config.validation:
        return after, stop
    error = None if stop else validate(run, position)
    if error is None:
        return position, True
    return after._replace(errors=(*position.errors, error)), False


def train_step(run, position, steps, batch, images):
    """One step: compute and update, exchange, record; returns the position after it, and whether to stop there.

    What is recorded is of all workers where they have exchanged.  Raises Diverged when the cost is not finite.
    """
    rate = learning_rate(run.config, position.epoch + position.batch / steps, position.errors, run.data.train.size)
    after = position._replace(batch=position.batch + 1, iteration=position.iteration + 1)
    with run.recorder.time("calc"):
        cost, error = run.exchange.step(*batch.inputs(images), rate=np.float32(rate))
    with run.recorder.time("sync"):
        cost, error = float(cost), float(error)             # a GPU may still be computing them
    check_cost(cost, rate, after, batch)
    last = after.batch == steps or at_limit(run, after) or at_snapshot(run, after)
    agreed = run.exchange.after_step(after.iteration, cost, error, rate, run.stop_requested(), last)
    run.recorder.train_iteration(
        iteration=after.iteration,
        epoch=position.epoch + after.batch / steps,
        cost=agreed.cost,
        error=agreed.error,
        learning_rate=rate,
        images=len(batch.labels) * run.data.train.size,
    )
    if lap := run.recorder.take_lap():
        run.recorder.laps(run.exchange.gather(lap))
    return after, agreed.stop


def check_cost(cost, rate, position, batch):
    """Raise Diverged, before others average with this state, when the cost of the step to `position` is not finite."""
    if not math.isfinite(cost):
        files = ", ".join(str(segment.path) for segment in batch.request.segments)
        raise Diverged(
            f"the cost became {cost} at iteration {position.iteration}, in epoch {position.epoch + 1}, on {files}; "
            f"a lower learning_rate than {rate:g} or a look at that file's images may help"
        )


def validate(run, position):
    """Cost and errors over all validation images, recorded; returns the top-1 error, or None when stopped.

    Each worker validates its share; the sums are the same on all.  Raises Diverged when the cost is not finite.
    """
    totals = np.zeros(4)                                    # of cost, top-1 error, top-5 error, and images
    with run.exchange.consensus(run.stop_requested()) as stop:
        if stop:
            return None
        for batch, images in read(run, validation_batches(run)):
            if run.stop_requested():
                break
            totals += len(batch.labels) * np.array([*run.network.validate(*batch.inputs(images)), 1], dtype=float)
    with run.recorder.time("comm"):
        totals, stop = run.exchange.total(totals, run.stop_requested())
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


def read(run, batches):
    """Pairs of a Batch and its images, an array that is valid until the next pair; time waited is recorded."""
    batches, ahead = itertools.tee(batches)
    images = run.batches.read(batch.request for batch in ahead)
    for batch in batches:
        with run.recorder.time("wait"):
            pixels = next(images)
        yield batch, pixels


def steps_of_epoch(run):
    """How many steps a worker takes in an epoch."""
    return len(run.data.train.plan(run.config.batch_size))


def training_batches(run, position):
    """The batches of the epoch that are still to do, and how many steps the whole epoch has."""
    config, split = run.config, run.data.train
    order = file_order(config.random_seed, position.epoch, len(split.files), config.shuffle)
    plan = split.plan(config.batch_size, order)
    first = position.iteration - position.batch

    def batches():
        for index in range(position.batch, len(plan)):
            segments, labels = plan[index]
            crop = training_crop(run, first + index, len(labels))
            yield Batch(Request(segments, None if config.use_data_layer else crop), crop, labels)

    return batches(), len(plan)


def training_crop(run, iteration, batch):
    config, size = run.config, run.network.model.image_size
    if not config.rand_crop:
        return centre_crop(batch, size)
    generator = crop_stream(config.random_seed, run.rank, iteration)
    return draw_crop(generator, batch, size, config.batch_crop_mirror)


def validation_batches(run):
    """Every validation image once, centre crop, the last batch as small as it is."""
    size, in_graph = run.network.model.image_size, run.config.use_data_layer
    for segments, labels in run.data.validation.plan(run.config.batch_size, keep_last=True):
        crop = centre_crop(len(labels), size)
        yield Batch(Request(segments, None if in_graph else crop), crop, labels)
