"""One rank of a training: opens device and data, starts its loader, compiles the network, runs the training loop."""

import gc
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.config import Config, ConfigError, backend_of, check_sections, dump
from alexnet.data.colour import PrincipalColours, colours_of
from alexnet.data.dataset import DataError, Dataset, open_dataset
from alexnet.data.progress import quantity
from alexnet.models import Model, model_class
from alexnet.native import atomic
from alexnet.native.atomic import reason
from alexnet.plots.report.run_report import RunReport
from alexnet.pretrained.initialization import Start, find_replacement_start, find_start
from alexnet.run import checkpoint, checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.run.folder import RunFolder
from alexnet.run.recorder import Plan, RunRecorder, WorkerRecorder, each_record
from alexnet.run.summary import last_lines
from alexnet.training.base import Record, Recorder
from alexnet.training.diagnosis import Detector
from alexnet.training.loop import Diverged, InputLost, Observer, Position, Run
from alexnet.training.network import Network, build_model, build_network, use_kernel_settings
from alexnet.training.statistics import StatisticsObserver
from multigpu.communicator import Communicator, DesyncError, PeerDied, StateDamaged
from multigpu.device import Device, DeviceError, open_device
from multigpu.launch import clock
from multigpu.launch.link import JobLink
from multigpu.loader import ParallelBatches, SerialBatches, WorkerBatches
from multigpu.rules import Role, role_of, rule_of
from multigpu.rules.state_check import require_as_written

SAVE_TIMEOUT = 300.0                             # seconds to finish a step and save after the loader has died


class FolderCreated(NamedTuple):
    """Worker 0 to workers: the path of the run's folder, which exists now. That of the others has no meaning."""

    path: Path
    step: int = 0


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
        ConfigError, DataError, DeviceError, CheckpointError: invalid input, raised before anything is written, and
            before compilation where possible.
        Diverged: the cost is not finite.
        LoaderDied, PeerDied: another process has exited.
        StateDamaged: weights or velocities have changed in memory.
    """
    check_sections(config)
    model_class(config.model)                    # an unknown model is reported before errors of the data
    rule = rule_of(config, comm)
    role = role_of(rule, config, comm)
    data = open_shards(config, role)
    model = build_model(config, data.classes, draw=not (config.resume_train or comm.replaces))
    use_kernel_settings(config)
    with ExitStack() as stack:
        recorder = stack.enter_context(open_recorder(config, data, comm.rank))
        stack.enter_context(log_warnings(recorder))
        run_folder = RunFolder(config)
        if comm.rank == 0:
            stack.enter_context(run_folder)
        start = find_replacement_start(config, data) if comm.replaces else find_start(config, data, model)
        watch = stack.enter_context(comm.watch(partial(report_dead_peer, link)))
        device = stack.enter_context(open_named(device_name, config))
        if not comm.replaces:
            comm.allgather(Present())
        if rule.elastic:
            comm.detach()
        log_run(recorder, config, data, device)
        batches = stack.enter_context(open_batches(config, model, start.mean, device, link, recorder))
        colours = find_colours(config, data, recorder)
        network = build_network(config, model, start.mean, role.worker, device.name, start.scale)
        network.rule_state = rule.state(network, config)
        if comm.rank == 0:
            checkpoint.check_room(run_folder.path, network, config, recorder.warn)
        position = initialize(start, network, config, recorder, role.workers)
        del start                                # the network now owns its arrays
        if comm.rank == 0 and not config.is_restart:             # a process may die after the last checkpoint
            check_unfinished(config, position)
        rule.configure(config, network, comm)
        compile_functions(network, recorder, config.images_at_once, role.functions)
        synchronizer = stack.enter_context(rule.connect(config, network, device, comm, recorder, position.iteration))
        position = synchronizer.begin(position)
        save = do_not_save
        observers: list[Observer] = []
        if isinstance(recorder, RunRecorder):
            config = open_folder(run_folder, config, position, recorder, link, keep_settings=comm.replaces)
            save = partial(save_checkpoint, run_folder.path, network, data, config, recorder)
            observers.append(RunReport(run_folder.path, network.state, data, recorder, position, config))
            if config.diagnosis:
                diagnose(recorder, data.classes)
                if not rule.has_server:          # rank 0 trains
                    observers.append(StatisticsObserver(network, recorder, config.print_freq))
        folder = run_folder.path
        if not (rule.elastic or comm.replaces):  # the others are in the training, and send no such message
            folder = comm.allgather(FolderCreated(folder))[0].path
        if recorder.failure:
            raise recorder.failure
        rescue = partial(rescue_state, folder, network, data, config)
        stopping = partial(has_to_stop, link, recorder)
        run = Run(
            config, network, data, batches, synchronizer, recorder, save, stopping, role.worker, rescue,
            tuple(observers), colours=colours,
        )
        with naming_the_last_checkpoint(folder):
            position = synchronizer.run(run, position)
            if recorder.failure:
                raise recorder.failure           # all is saved, unless the disk is full
        for observer in observers:
            observer.run_ended(position)
        watch.close()                            # from here on an exiting rank has completed its work
        if isinstance(recorder, RunRecorder):
            log_result(recorder, config, run_folder.path, position, resume_command(config, comm))


def open_shards(config: Config, role: Role) -> Dataset:
    """Open the data set and return the shards of this rank.

    Raises:
        ConfigError, DataError: the data cannot be opened, or a batch is larger than the rank's shard.
    """
    assert config.data is not None               # the launcher or rank 0 has set it
    data = open_dataset(config.data, config.classes, config.verify_data)
    train = data.train.shard(role.worker, role.workers)
    train.plan(config.batch_size)                # raises if a batch is larger than the shard
    return data._replace(train=train, validation=data.validation.shard(*role.validates))


def open_recorder(config: Config, data: Dataset, rank: int) -> Recorder:
    """Return the recorder of a rank: only rank 0 prints and writes records."""
    if rank != 0:
        return WorkerRecorder(rank)
    steps_of_epoch = len(data.train.plan(config.batch_size))
    validates = len(data.validation.plan(config.images_at_once, keep_last=True)) if config.validation else 0
    steps = config.n_epochs * steps_of_epoch
    plan = Plan(config.n_epochs, steps_of_epoch, validates)
    return RunRecorder(None, config.print_freq, min(steps, config.n_iterations or steps), plan=plan)


def check_unfinished(config: Config, position: Position) -> None:
    """Raise ConfigError if a resumed run has nothing left to do."""
    if position.epoch >= config.n_epochs:
        raise ConfigError(
            f"n_epochs={config.n_epochs} is reached, after {quantity(position.iteration, 'iteration')}; set n_epochs="
            f"{position.epoch + 1} or more to continue"
        )
    if config.n_iterations is not None and position.iteration >= config.n_iterations:
        raise ConfigError(f"n_iterations={config.n_iterations} is reached; set n_iterations=null to continue")


def open_folder(
    run_folder: RunFolder, config: Config, position: Position, recorder: RunRecorder, link: JobLink, keep_settings: bool
) -> Config:
    """Create the run's folder, or prepare that of a resumed run, and write the settings; everything has been checked.

    Args:
        keep_settings: do not write them, because the run has not started again.

    Returns:
        The settings, with the name of the folder.
    """
    folder = run_folder.create()
    link.log_to(folder / "log.txt")
    recorder.open(folder)
    if config.resume_train or config.is_restart:
        recorder.truncate(position.iteration, position.epoch)
    config = config.model_copy(update={"run_name": folder.name})
    if not keep_settings:
        atomic.write(folder / "config.yaml", dump(as_stored(config)))
    recorder.log(f"results go to {folder}")
    return config


def diagnose(recorder: RunRecorder, classes: int) -> None:
    """Log a warning as soon as the records show that the training will fail."""
    assert recorder.plan is not None             # open_recorder() has set it
    detector = Detector(classes, recorder.plan.n_epochs * recorder.plan.steps_of_epoch)
    for record in each_record(recorder.folder):  # of a resumed run
        detector.add(record)

    def warn(record: Record) -> None:
        for finding in detector.add(record):
            recorder.warn(finding.text)

    recorder.on_record = warn


def log_result(recorder: RunRecorder, config: Config, folder: Path, position: Position, command: str) -> None:
    """Log how the run has ended, what it saved, and how to continue with `command`."""
    for line in last_lines(config, folder, position, recorder.validations, command):
        recorder.log(line)
    recorder.log(f"report: {folder / 'report.html'}")


def resume_command(config: Config, comm: Communicator) -> str:
    """Return the beginning of the command that resumes a run."""
    program = "python train.py" if Path("train.py").is_file() else "python -m alexnet train"
    if comm.over_mpi:
        return f"mpiexec -n {comm.size} {program.replace('python', 'python -m mpi4py', 1)}"
    if config.rank is not None:
        return f"{program} rank=... size={comm.size} device=..."
    return program


def open_named(name: str, config: Config) -> Device:
    """Open a device by name; auto is cuda0 if it can be opened and the backend supports it, else cpu."""
    if name != "auto":
        return open_device(name, on_host=backend_of(config.backend, name) != "jax")
    if backend_of(config.backend, "cuda0") == "jax":
        with suppress(DeviceError):
            return open_device("cuda0", on_host=False)
    return open_named("cpu", config)


def as_stored(config: Config) -> Config:
    """Return the settings to store: with absolute paths, without those of a worker started by hand."""
    stored = {"output": os.path.abspath(config.output), "rank": None, "size": None, "device": None}
    if config.resume_train:
        stored["resume_train"] = os.path.abspath(config.resume_train)
    return config.model_copy(update=stored)


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


def has_to_stop(link: JobLink, recorder: Recorder) -> bool:
    """Return whether to finish the step, save and end: a stop was requested, or a record could not be written."""
    return link.stop_requested() or recorder.failure is not None


def report_after_saving(link: JobLink, message: str) -> None:
    """Report a dead loader if the worker, which saves at its next reading, has not ended by then."""
    clock.sleep(SAVE_TIMEOUT)
    link.report(message)


def open_batches(
    config: Config, model: Model, mean: np.ndarray, device: Device, link: JobLink, recorder: Recorder
) -> WorkerBatches:
    """Return how this run reads its batches: in a loader process beside the worker, or in the worker itself."""
    size = model.image_size
    channels, rows, columns = mean.shape if config.use_data_layer else (mean.shape[0], size, size)
    shape = channels, rows, columns, config.images_at_once
    dtype = np.dtype(np.uint8 if config.use_data_layer else np.float32)
    arguments = mean, size
    if not config.para_load:
        return SerialBatches(arguments, shape, dtype)
    return ParallelBatches(
        arguments, shape, dtype, config.slots, device=device, on_death=partial(report_after_saving, link),
        on_stall=recorder.warn, stopping=link.stopping,
    )


def log_run(recorder: Recorder, config: Config, data: Dataset, device: Device) -> None:
    """Log the model, the data and the device."""
    dropped = data.train.dropped(config.batch_size)
    size = data.train.size
    rest = f" ({dropped} are unused in each epoch)" if dropped else ""
    workers = f" by each of {size} workers" if size > 1 else ""
    recorder.log(
        f"{config.model} on {data.path}: {data.classes} classes, {data.train.n} training images in batches of "
        f"{config.batch_size}{workers}{rest}, {data.validation.n} validation images; "
        f"computed on {device.name}"
    )
    for remark in data.remarks:
        recorder.log(f"warning: {remark}")       # once per run, not once per worker
    for note in config.notes:
        recorder.log(note)


def find_colours(config: Config, data: Dataset, recorder: Recorder) -> PrincipalColours | None:
    """Return the principal components of the training images and log the size of the shifts; None without pca_colour.

    They are the same on every worker, because each uses the same sample of all images.
    """
    if not config.pca_colour:
        return None
    colours = colours_of(data.train.files)
    shifts = ", ".join(f"{shift:.1f}" for shift in colours.deviations(config.pca_colour))
    recorder.log(f"pca_colour shifts the principal colours by {shifts} grey levels (standard deviations)")
    return colours


def initialize(start: Start, network: Network, config: Config, recorder: Recorder, workers: int) -> Position:
    """Initialize or restore the network and log the starting point; return the Position."""
    position = start.begin(network, config, workers)
    if not position.iteration:
        network.start_averages()
    for warning in start.warnings:
        recorder.log(f"warning: {warning}")      # once per run, not once per worker
    if description := start.describe(position):
        recorder.log(description)
    return position


def compile_functions(network: Network, recorder: Recorder, batch_size: int, names: Sequence[str]) -> None:
    """Compile the named functions before training begins and log it, because the first compilation is slow.

    Args:
        batch_size: images computed at once.
    """
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


def save_checkpoint(
    folder: Path, network: Network, data: Dataset, config: Config, recorder: RunRecorder, position: Position
) -> None:
    """Write the checkpoint of rank 0; raise StateDamaged if the state has changed since the last update."""
    with recorder.paused():
        require_as_written(network, position.iteration)
        checkpoint.save(folder, position, network, data, as_stored(config), recorder.error_at(position))


def rescue_state(folder: Path, network: Network, data: Dataset, config: Config, position: Position) -> None:
    """Write the checkpoint of `position` from any worker, unless it exists or no step has been done.

    Raises:
        StateDamaged: the state has changed since the last update.
    """
    require_as_written(network, position.iteration)
    if position.iteration and not checkpoint_format.snapshot_path(folder, position.iteration).exists():
        checkpoint.save(folder, position, network, data, as_stored(config))


@contextmanager
def naming_the_last_checkpoint(folder: Path) -> Iterator[None]:
    """Add the newest checkpoint to the message of an error that ends the run."""
    try:
        yield
    except (
        Diverged, DataError, InputLost, CheckpointError, DesyncError, StateDamaged, PeerDied, OSError
    ) as error:
        saved = checkpoint_format.newest(folder)
        rest = f"the last good checkpoint is {saved}" if saved else "no checkpoint was saved before"
        kind = OSError if isinstance(error, OSError) else type(error)
        raise kind(f"{reason(error) if isinstance(error, OSError) else error}; {rest}") from error
