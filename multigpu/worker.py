"""One training process: opens the data, starts its loader, compiles the network, runs the training loop."""

import gc
import pkgutil
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from alexnet import snapshots
from alexnet.compile import build_network, use_machine
from alexnet.config import dump
from alexnet.data import open_dataset
from alexnet.models import model_class
from alexnet.recorder import Recorder
from alexnet.training import Diverged, Position, Run, train
from multigpu.loader import ParallelBatches, SerialBatches

PLOTS = "alexnet.plots"                          # by name: the first step does not wait for matplotlib, 0.4 s


def work(config, rank, size, device, control):
    """Entry point of a worker process: train as the settings say, until the end or a stop; all is saved on return.

    rank, size  which worker this is, of how many
    device      where it computes: "cpu"
    control     multigpu.control.Control, the line to the launcher
    Raises ConfigError, DataError or CheckpointError for what cannot be, before anything is compiled if it can be
    known by then; Diverged when the cost is no number; LoaderDied.
    """
    model = model_class(config.model)
    data = open_dataset(config.data, config.classes)
    data = data._replace(train=data.train.shard(rank, size), validation=data.validation.shard(rank, size))
    steps = len(data.train.plan(config.batch_size))             # refuses a batch larger than the set
    folder = Path(config.output, config.run_name)
    total = min(config.n_epochs * steps, config.n_iterations or config.n_epochs * steps)
    use_machine(config.threads, config.tiles)
    with (
        Recorder(folder, config.print_freq, total) as recorder,
        warnings_in_the_log(recorder),
        open_batches(config, model, data, control) as batches,
    ):
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        introduce(recorder, config, data, folder)
        network = build_network(config, data.classes, data.mean, rank)
        position = resume(config, network, recorder)
        compile_functions(network, recorder)
        save = partial(save_and_draw, folder, network, data, config, recorder)
        run = Run(config, network, data, batches, alone, recorder, save, control.stop_requested, rank)
        with naming_the_last_checkpoint(folder):
            position = train(run, position)
        finished = "all epochs are done" if position.epoch == config.n_epochs else "stopped and saved"
        recorder.log(f"{finished} after {position.iteration} iterations; see {folder}")


def alone():
    """The exchange of a single worker: there is nobody to exchange with."""


@contextmanager
def warnings_in_the_log(recorder):
    """Have a warning be a line of the log like any other, without the place in the source that gave it."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place: recorder.log(f"warning: {message}")
        yield


def open_batches(config, model, data, control):
    """How this run reads its batches: a loader process beside the worker, or the worker itself."""
    size = model.image_size
    if config.use_data_layer:
        shape, dtype = (*data.mean.shape, config.batch_size), np.uint8
    else:
        shape, dtype = (data.mean.shape[0], size, size, config.batch_size), np.float32
    arguments = data.mean, size
    if not config.para_load:
        return SerialBatches(arguments, shape, dtype)
    return ParallelBatches(arguments, shape, dtype, config.slots, on_death=control.report)


def introduce(recorder, config, data, folder):
    """Say what will be trained on what."""
    dropped = data.train.dropped(config.batch_size)
    rest = f" ({dropped} are left over each epoch)" if dropped else ""
    recorder.log(
        f"{config.model} on {data.path}: {data.classes} classes, {data.train.n} training images in batches of "
        f"{config.batch_size}{rest}, {data.validation.n} validation images; results go to {folder}"
    )


def resume(config, network, recorder):
    """Where training starts: at the beginning, or where the checkpoint of resume_train stands."""
    if not config.resume_train:
        return Position()
    path, position = snapshots.restore(config.resume_train, network, config)
    recorder.truncate(position.iteration, position.epoch)
    recorder.log(f"going on from {path}, after {position.iteration} iterations")
    return position


def compile_functions(network, recorder):
    """Compile before training begins, and say so: the first time it takes a while."""
    recorder.log("compiling the network (up to a minute the first time on a machine, seconds from then on) ...")
    began = time.perf_counter()
    with collector_paused():
        network.compile_all()
    recorder.log(f"compiled in {time.perf_counter() - began:.1f} s")


@contextmanager
def collector_paused():
    """Have Python not look for cyclic garbage: it would search a growing graph, for a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def save_and_draw(folder, network, data, config, recorder, position):
    """Write the checkpoint, the learning curves and the filters of the first layer."""
    with recorder.paused():
        snapshots.save(folder, position, network, data, config)
        plots = pkgutil.resolve_name(PLOTS)
        plots.learning_curves(folder)
        if (filters := network.state.get("conv1.W")) is not None:
            plots.filters(filters.get_value(borrow=True), folder / "filters.png")


@contextmanager
def naming_the_last_checkpoint(folder):
    """Add to a Diverged what can be gone on from."""
    try:
        yield
    except Diverged as error:
        saved = snapshots.newest(folder)
        rest = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved before"
        raise Diverged(f"{error}; {rest}") from error
