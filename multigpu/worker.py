"""One rank of a training: opens device and data, starts its loader, compiles the network, runs the training loop."""

import gc
import pkgutil
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet import snapshots
from alexnet.compile import build_network, engine_of, use_machine
from alexnet.config import dump
from alexnet.data import open_dataset
from alexnet.models import model_class
from alexnet.recorder import Recorder, Silent
from alexnet.start import find_start
from alexnet.training import Diverged, Run
from multigpu.device import DeviceError, open_device
from multigpu.loader import ParallelBatches, SerialBatches
from multigpu.rules import part_of, rule_of

PLOTS = "alexnet.plots"                          # by name: the first step does not wait for matplotlib, 0.4 s


class Present(NamedTuple):
    """Worker to workers: I have my device and my data; nothing has been written yet."""

    step: int = 0


def work(config, device, control, partners):
    """What a rank does: its part of the training that the settings ask for, until the end or a stop; all is saved on
    return.  Rank 0 prints and saves.

    device    where it computes: auto, cpu, cuda0 ...
    control   multigpu.control.Control, the line to the launcher, or what stands for it in an MPI job
    partners  the other ranks: multigpu.partners.Partners, or multigpu.mpi's
    Raises ConfigError, DataError, DeviceError or CheckpointError for what cannot be, before anything is compiled if it
    can be known by then; Diverged when the cost is no number; LoaderDied, PartnerDied.
    """
    model, rule, rank = model_class(config.model), rule_of(config, partners), partners.rank
    part, connect = part_of(rule, config, partners), pkgutil.resolve_name(rule.connect)
    data = open_dataset(config.data, config.classes)
    train = data.train.shard(part.worker, part.workers)
    data = data._replace(train=train, validation=data.validation.shard(*part.validates))
    steps = len(train.plan(config.batch_size))                  # refuses a batch larger than the set
    start = find_start(config, data)
    data = data._replace(mean=start.mean)
    folder = Path(config.output, config.run_name)
    total = min(config.n_epochs * steps, config.n_iterations or config.n_epochs * steps)
    use_machine(config.threads, config.tiles)
    with ExitStack() as stack:
        watch = stack.enter_context(partners.watch(partial(miss, control)))
        device = stack.enter_context(open_named(device, config))
        partners.meet(Present())
        if rule.lone:
            partners.apart()
        recorder = stack.enter_context(Silent(rank) if rank else Recorder(folder, config.print_freq, total))
        stack.enter_context(warnings_in_the_log(recorder))
        batches = stack.enter_context(open_batches(config, model, data, device, control))
        if rank == 0:
            (folder / "config.yaml").write_text(dump(for_anybody(config)), encoding="utf-8")
        introduce(recorder, config, data, device, folder)
        network = build_network(config, data.classes, data.mean, part.worker, device.name)
        position = begin(start, network, config, recorder, part.workers)
        del start                                # its arrays are the network's now
        compile_functions(network, recorder, config.batch_size, part.functions)
        exchange = stack.enter_context(connect(config, network, device, partners, recorder, position.iteration))
        save = partial(save_and_draw, folder, network, data, config, recorder) if rank == 0 else leave_it_to_rank_0
        run = Run(config, network, data, batches, exchange, recorder, save, control.stop_requested, part.worker)
        with naming_the_last_checkpoint(folder):
            position = exchange.run(run, position)
        watch.close()                            # from here on a rank that ends has done all it had to
        finished = "all epochs are done" if position.epoch == config.n_epochs else "stopped and saved"
        recorder.log(f"{finished} after {position.iteration} iterations; see {folder}")


def open_named(name, config):
    """The open device of a name; auto is cuda0 where that can be had and the engine can use it, else the cpu."""
    if name != "auto":
        return open_device(name, on_host=engine_of(config.engine, name) != "jax")
    if engine_of(config.engine, "cuda0") == "jax":
        with suppress(DeviceError):
            return open_device("cuda0", on_host=False)
    return open_named("cpu", config)


def for_anybody(config):
    """The settings without those of a worker started by hand: resuming, one says anew how many there are."""
    return config.model_copy(update={"rank": None, "size": None, "device": None})


def miss(control, rank):
    """Say that a partner has died, whatever this process computes."""
    control.report(f"worker {rank} has died, and there is no going on without it", follows=True)


def leave_it_to_rank_0(position):
    """How the other ranks save."""


@contextmanager
def warnings_in_the_log(recorder):
    """Have a warning be a line of the log like any other, without the place in the source that gave it."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place: recorder.warn(message)
        yield


def open_batches(config, model, data, device, control):
    """How this run reads its batches: a loader process beside the worker, or the worker itself."""
    size = model.image_size
    if config.use_data_layer:
        shape, dtype = (*data.mean.shape, config.batch_size), np.uint8
    else:
        shape, dtype = (data.mean.shape[0], size, size, config.batch_size), np.float32
    arguments = data.mean, size
    if not config.para_load:
        return SerialBatches(arguments, shape, dtype)
    return ParallelBatches(arguments, shape, dtype, config.slots, device=device, on_death=control.report)


def introduce(recorder, config, data, device, folder):
    """Say what will be trained on what, and where."""
    dropped, size = data.train.dropped(config.batch_size), data.train.size
    rest = f" ({dropped} are left over each epoch)" if dropped else ""
    workers = f" by each of {size} workers" if size > 1 else ""
    recorder.log(
        f"{config.model} on {data.path}: {data.classes} classes, {data.train.n} training images in batches of "
        f"{config.batch_size}{workers}{rest}, {data.validation.n} validation images; "
        f"computed on {device.name}; results go to {folder}"
    )


def begin(start, network, config, recorder, size):
    """Bring the network to where training starts, and say where that is; returns the Position."""
    position = start.begin(network, config, size)
    if config.resume_train:
        recorder.truncate(position.iteration, position.epoch)
    for sentence in start.warnings:
        recorder.log(f"warning: {sentence}")     # once, not by every worker
    if told := start.sentence(position):
        recorder.log(told)
    return position


def compile_functions(network, recorder, batch, names):
    """Compile the functions of these names before training begins, and say so: the first time it takes a while.

    batch  images of a step
    """
    recorder.log("compiling the network (up to a minute the first time on a machine, seconds from then on) ...")
    began = time.perf_counter()
    with collector_paused():
        network.compile_all(names, batch)
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
