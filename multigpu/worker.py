"""One rank of a training: opens device and data, starts its loader, compiles the network, runs the training loop."""

import gc
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.config import Config, check_sections, dump
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.models import Model, model_class
from alexnet.native import compiler
from alexnet.plots.report import history
from alexnet.plots.report.run_report import RunReport
from alexnet.pretrained.initialization import Start, find_start
from alexnet.run import checkpoint
from alexnet.run.recorder import RunRecorder, WorkerRecorder
from alexnet.training.base import Recorder
from alexnet.training.loop import Diverged, Observer, Position, Run
from alexnet.training.network import Network, backend_of, build_model, build_network
from multigpu.communicator import Communicator
from multigpu.device import Device, DeviceError, open_device
from multigpu.launch.link import JobLink
from multigpu.loader import ParallelBatches, SerialBatches, WorkerBatches
from multigpu.rules import role_of, rule_of


class Present(NamedTuple):
    """Worker to workers: device and data are open; nothing has been written yet."""

    step: int = 0


def work(config: Config, device_name: str, link: JobLink, comm: Communicator) -> None:
    """Run one rank of the training until its end or a stop; all results are saved on return.  Rank 0 prints and saves.

    Args:
        device_name: where the rank computes: auto, cpu, cuda0 ...
        link: the connection to the launcher or the monitor.
        comm: connects the ranks.

    Raises:
        ConfigError, DataError, DeviceError, CheckpointError: invalid input, raised before compilation where possible.
        Diverged: the cost is not finite.
        LoaderDied, PeerDied: another process has exited.
    """
    check_sections(config)
    model_class(config.model)                    # an unknown model is reported before errors of the data
    rule = rule_of(config, comm)
    role = role_of(rule, config, comm)
    assert config.data is not None               # the launcher or rank 0 has set it
    data = open_dataset(config.data, config.classes)
    train = data.train.shard(role.worker, role.workers)
    data = data._replace(train=train, validation=data.validation.shard(*role.validates))
    steps_of_epoch = len(train.plan(config.batch_size))         # raises if a batch is larger than the set
    model = build_model(config, data.classes)
    start = find_start(config, data, model)
    data = data._replace(mean=start.mean)
    folder = Path(config.output, config.run_name or "")
    n_iterations = min(config.n_epochs * steps_of_epoch, config.n_iterations or config.n_epochs * steps_of_epoch)
    if config.isa != "auto":                     # auto keeps ALEXNET_ISA
        compiler.use_isa(config.isa)
    compiler.use_threads(config.threads)
    with ExitStack() as stack:
        watch = stack.enter_context(comm.watch(partial(report_dead_peer, link)))
        device = stack.enter_context(open_named(device_name, config))
        comm.allgather(Present())
        if rule.elastic:
            comm.detach()
        recorder: Recorder = WorkerRecorder(comm.rank)
        save = do_not_save
        if comm.rank == 0:
            recorder = RunRecorder(folder, config.print_freq, n_iterations)
            (folder / "config.yaml").write_text(dump(without_placement(config)), encoding="utf-8")
        stack.enter_context(recorder)
        stack.enter_context(log_warnings(recorder))
        batches = stack.enter_context(open_batches(config, model, data, device, link))
        log_run(recorder, config, data, device, folder)
        network = build_network(config, model, data.mean, role.worker, device.name)
        position = initialize(start, network, config, recorder, role.workers)
        del start                                # the network now owns its arrays
        compile_functions(network, recorder, config.batch_size, role.functions)
        synchronizer = stack.enter_context(rule.connect(config, network, device, comm, recorder, position.iteration))
        observer = Observer()
        if comm.rank == 0:
            save = partial(save_and_plot, folder, network, data, config, recorder)
            observer = report = RunReport(folder, network.state, data, recorder, position, config.batch_size)
        run = Run(
            config, network, data, batches, synchronizer, recorder, save, link.stop_requested, role.worker, observer
        )
        with naming_the_last_checkpoint(folder):
            position = synchronizer.run(run, position)
        if comm.rank == 0:
            report.write(position)               # a run that ended within an epoch
            recorder.log(f"report: {folder / 'report.html'}")
        watch.close()                            # from here on an exiting rank has completed its work
        finished = "all epochs are done" if position.epoch == config.n_epochs else "stopped and saved"
        recorder.log(f"{finished} after {position.iteration} iterations; see {folder}")


def open_named(name: str, config: Config) -> Device:
    """Open a device by name; auto is cuda0 if it can be opened and the backend supports it, else cpu."""
    if name != "auto":
        return open_device(name, on_host=backend_of(config.backend, name) != "jax")
    if backend_of(config.backend, "cuda0") == "jax":
        with suppress(DeviceError):
            return open_device("cuda0", on_host=False)
    return open_named("cpu", config)


def without_placement(config: Config) -> Config:
    """Return the settings without those of a worker started by hand; a resumed run specifies them again."""
    return config.model_copy(update={"rank": None, "size": None, "device": None})


def report_dead_peer(link: JobLink, rank: int) -> None:
    """Report the death of a peer, at any time during the computation."""
    link.report(f"worker {rank} has died, and the run cannot continue without it", caused_by_peer=True)


def do_not_save(position: Position) -> None:
    """Do nothing: only rank 0 saves."""


@contextmanager
def log_warnings(recorder: Recorder) -> Iterator[None]:
    """Write warnings to the log as ordinary lines, without their source location."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *location: recorder.warn(message)
        yield


def open_batches(config: Config, model: Model, data: Dataset, device: Device, link: JobLink) -> WorkerBatches:
    """Return how this run reads its batches: in a loader process beside the worker, or in the worker itself."""
    size = model.image_size
    channels, rows, columns = data.mean.shape if config.use_data_layer else (data.mean.shape[0], size, size)
    shape = channels, rows, columns, config.batch_size
    dtype = np.dtype(np.uint8 if config.use_data_layer else np.float32)
    arguments = data.mean, size
    if not config.para_load:
        return SerialBatches(arguments, shape, dtype)
    return ParallelBatches(arguments, shape, dtype, config.slots, device=device, on_death=link.report)


def log_run(recorder: Recorder, config: Config, data: Dataset, device: Device, folder: Path) -> None:
    """Log the model, the data and the device."""
    dropped = data.train.dropped(config.batch_size)
    size = data.train.size
    rest = f" ({dropped} are unused in each epoch)" if dropped else ""
    workers = f" by each of {size} workers" if size > 1 else ""
    recorder.log(
        f"{config.model} on {data.path}: {data.classes} classes, {data.train.n} training images in batches of "
        f"{config.batch_size}{workers}{rest}, {data.validation.n} validation images; "
        f"computed on {device.name}; results go to {folder}"
    )


def initialize(start: Start, network: Network, config: Config, recorder: Recorder, workers: int) -> Position:
    """Initialize or restore the network and log the starting point; return the Position."""
    position = start.begin(network, config, workers)
    if config.resume_train:
        recorder.truncate(position.iteration, position.epoch)
    for warning in start.warnings:
        recorder.log(f"warning: {warning}")      # once per run, not once per worker
    if description := start.describe(position):
        recorder.log(description)
    return position


def compile_functions(network: Network, recorder: Recorder, batch_size: int, names: Sequence[str]) -> None:
    """Compile the named functions before training begins and log it, because the first compilation is slow."""
    recorder.log("compiling the network (up to a minute the first time on a machine, seconds from then on) ...")
    began = time.perf_counter()
    with collector_paused():
        network.compile_all(names, batch_size)
    recorder.log(f"compiled in {time.perf_counter() - began:.1f} s")


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause cyclic garbage collection, which takes a fifth of the time while the graph grows."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def save_and_plot(
    folder: Path, network: Network, data: Dataset, config: Config, recorder: Recorder, position: Position
) -> None:
    """Write the checkpoint, the learning curves and the filters of the first layer."""
    from alexnet.plots import drawing  # importing matplotlib would delay the first step by 0.4 s

    with recorder.paused():
        checkpoint.save(folder, position, network, data, config)
        drawing.learning_curves(folder)
        if (filters := network.state.get("conv1.W")) is not None:
            initial = history.load(folder).initial
            drawing.filters(filters.get_value(borrow=True), folder / "filters.png", initial=initial)


@contextmanager
def naming_the_last_checkpoint(folder: Path) -> Iterator[None]:
    """Add the newest checkpoint to the message of a Diverged error."""
    try:
        yield
    except Diverged as error:
        saved = checkpoint.newest(folder)
        rest = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved before"
        raise Diverged(f"{error}; {rest}") from error
