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

from alexnet.config.schema import dump
from alexnet.data.dataset import open_dataset
from alexnet.models import model_class
from alexnet.pretrained.initialization import find_start
from alexnet.run import checkpoint
from alexnet.run.recorder import RunRecorder, WorkerRecorder
from alexnet.training.loop import Diverged, Run
from alexnet.training.network import backend_of, build_network, use_machine
from multigpu.device import DeviceError, open_device
from multigpu.loader import ParallelBatches, SerialBatches
from multigpu.rules import role_of, rule_of

PLOTS = "alexnet.plots"                          # by name: the first step does not wait 0.4 s for matplotlib


class Present(NamedTuple):
    """Worker to workers: device and data are open; nothing has been written yet."""

    step: int = 0


def work(config, device, control, comm):
    """Run one rank of the training until its end or a stop; all results are saved on return.  Rank 0 prints and saves.

    Args:
        config: the settings.
        device: where the rank computes: auto, cpu, cuda0 ...
        control: multigpu.launcher_link.LauncherLink, or its counterpart in an MPI job.
        comm: connects the ranks: a PipeCommunicator or an MpiCommunicator.

    Raises:
        ConfigError, DataError, DeviceError, CheckpointError: invalid input, raised before compilation where possible.
        Diverged: the cost is not finite.
        LoaderDied, PeerDied: another process has exited.
    """
    model = model_class(config.model)
    rule = rule_of(config, comm)
    rank = comm.rank
    part = role_of(rule, config, comm)
    data = open_dataset(config.data, config.classes)
    train = data.train.shard(part.worker, part.workers)
    data = data._replace(train=train, validation=data.validation.shard(*part.validates))
    steps = len(train.plan(config.batch_size))                  # raises if a batch is larger than the set
    start = find_start(config, data)
    data = data._replace(mean=start.mean)
    folder = Path(config.output, config.run_name)
    total = min(config.n_epochs * steps, config.n_iterations or config.n_epochs * steps)
    use_machine(config.threads, config.isa)
    with ExitStack() as stack:
        watch = stack.enter_context(comm.watch(partial(miss, control)))
        device = stack.enter_context(open_named(device, config))
        comm.allgather(Present())
        if rule.elastic:
            comm.detach()
        recorder = WorkerRecorder(rank) if rank else RunRecorder(folder, config.print_freq, total)
        stack.enter_context(recorder)
        stack.enter_context(warnings_in_the_log(recorder))
        batches = stack.enter_context(open_batches(config, model, data, device, control))
        if rank == 0:
            (folder / "config.yaml").write_text(dump(for_anybody(config)), encoding="utf-8")
        introduce(recorder, config, data, device, folder)
        network = build_network(config, data.classes, data.mean, part.worker, device.name)
        position = begin(start, network, config, recorder, part.workers)
        del start                                # the network now owns its arrays
        compile_functions(network, recorder, config.batch_size, part.functions)
        exchange = stack.enter_context(rule.connect(config, network, device, comm, recorder, position.iteration))
        save = partial(save_and_draw, folder, network, data, config, recorder) if rank == 0 else leave_it_to_rank_0
        run = Run(config, network, data, batches, exchange, recorder, save, control.stop_requested, part.worker)
        with naming_the_last_checkpoint(folder):
            position = exchange.run(run, position)
        watch.close()                            # from here on an exiting rank has completed its work
        finished = "all epochs are done" if position.epoch == config.n_epochs else "stopped and saved"
        recorder.log(f"{finished} after {position.iteration} iterations; see {folder}")


def open_named(name, config):
    """Open a device by name; auto is cuda0 if it can be opened and the backend supports it, else cpu."""
    if name != "auto":
        return open_device(name, on_host=backend_of(config.backend, name) != "jax")
    if backend_of(config.backend, "cuda0") == "jax":
        with suppress(DeviceError):
            return open_device("cuda0", on_host=False)
    return open_named("cpu", config)


def for_anybody(config):
    """Return the settings without those of a worker started by hand; a resumed run specifies them again."""
    return config.model_copy(update={"rank": None, "size": None, "device": None})


def miss(control, rank):
    """Report the death of a peer, at any time during the computation."""
    control.report(f"worker {rank} has died, and the run cannot continue without it", follows=True)


def leave_it_to_rank_0(position):
    """Do nothing: only rank 0 saves."""


@contextmanager
def warnings_in_the_log(recorder):
    """Write warnings to the log as ordinary lines, without their source location."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place: recorder.warn(message)
        yield


def open_batches(config, model, data, device, control):
    """Return how this run reads its batches: in a loader process beside the worker, or in the worker itself."""
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
    """Log the model, the data and the device."""
    dropped, size = data.train.dropped(config.batch_size), data.train.size
    rest = f" ({dropped} are left over each epoch)" if dropped else ""
    workers = f" by each of {size} workers" if size > 1 else ""
    recorder.log(
        f"{config.model} on {data.path}: {data.classes} classes, {data.train.n} training images in batches of "
        f"{config.batch_size}{workers}{rest}, {data.validation.n} validation images; "
        f"computed on {device.name}; results go to {folder}"
    )


def begin(start, network, config, recorder, size):
    """Initialise or restore the network and log the starting point; return the Position."""
    position = start.begin(network, config, size)
    if config.resume_train:
        recorder.truncate(position.iteration, position.epoch)
    for sentence in start.warnings:
        recorder.log(f"warning: {sentence}")     # once per run, not once per worker
    if told := start.sentence(position):
        recorder.log(told)
    return position


def compile_functions(network, recorder, batch, names):
    """Compile the named functions before training begins and log it, because the first compilation is slow.

    batch: images per step.
    """
    recorder.log("compiling the network (up to a minute the first time on a machine, seconds from then on) ...")
    began = time.perf_counter()
    with collector_paused():
        network.compile_all(names, batch)
    recorder.log(f"compiled in {time.perf_counter() - began:.1f} s")


@contextmanager
def collector_paused():
    """Pause cyclic garbage collection, which takes a fifth of the time while the graph grows."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def save_and_draw(folder, network, data, config, recorder, position):
    """Write the checkpoint, the learning curves and the filters of the first layer."""
    with recorder.paused():
        checkpoint.save(folder, position, network, data, config)
        plots = pkgutil.resolve_name(PLOTS)
        plots.learning_curves(folder)
        if (filters := network.state.get("conv1.W")) is not None:
            plots.filters(filters.get_value(borrow=True), folder / "filters.png")


@contextmanager
def naming_the_last_checkpoint(folder):
    """Add the newest checkpoint to the message of a Diverged error."""
    try:
        yield
    except Diverged as error:
        saved = checkpoint.newest(folder)
        rest = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved before"
        raise Diverged(f"{error}; {rest}") from error
