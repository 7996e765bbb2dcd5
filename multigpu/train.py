"""The command `train`: settings, data and folder of a run, then its workers. train.py documents the usage."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from alexnet.config import Config, ConfigError, load_config
from alexnet.data.dataset import DataError
from alexnet.native.main_module import check_main_module
from alexnet.native.packages import TRAIN_PROGRAM
from alexnet.run.checkpoint_format import CheckpointError, snapshots
from multigpu.launch.launcher import WorkFunction, launch
from multigpu.mpi import why_no_mpi
from multigpu.mpi.rank_wrapper import wrap_rank
from multigpu.rules import RULES

SYNTHETIC = Path("data", "synthetic")            # the data set of a run without the setting data
MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")           # of Open MPI, and of MPICH and its derivatives
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


def main(arguments: Sequence[str], entry: WorkFunction | None = None) -> int:
    """Train with the settings of a command line and return the exit status.

    Args:
        arguments: without the program's name.
        entry: the function that each worker runs; None: multigpu.worker.work.
    """
    if problem := check_main_module() or (started_by_mpi() and why_no_mpi()):
        if is_first_rank():
            print(f"{TRAIN_PROGRAM}: {problem}", file=sys.stderr)
        return 2
    if started_by_mpi():
        if is_elastic(arguments):
            wrap_rank()
        from multigpu.mpi import job  # importing mpi4py initialises MPI

        return job.run(lambda: settings_of_run(arguments), entry)
    try:
        config = settings_of_run(arguments)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"{TRAIN_PROGRAM}: {error}", file=sys.stderr)
        return 2
    return launch(config, entry)


def started_by_mpi() -> bool:
    """Return whether this process is a rank of an MPI job."""
    return "mpi4py" in sys.modules or any(name in os.environ for name in MPI_VARIABLES)


def is_first_rank() -> bool:
    """Return whether this process is rank 0 of an MPI job, or of none; MPI is not imported."""
    return next((os.environ[name] for name in MPI_RANKS if name in os.environ), "0") == "0"


def is_elastic(arguments: Sequence[str]) -> bool:
    """Return whether the rule of the settings is elastic; False if they are invalid, which rank 0 reports."""
    if "--help" in arguments:
        return False
    with suppress(ConfigError, CheckpointError):
        return RULES.find(load_settings(arguments).rule).elastic
    return False


def settings_of_run(arguments: Sequence[str]) -> Config:
    """Return the Config of a run, with its data and its name; the workers check the settings of rules."""
    return with_run(with_data(load_settings(arguments)))


def load_settings(arguments: Sequence[str]) -> Config:
    """Return the Config of the command line; if it resumes a run, the run's settings are the defaults."""
    config = load_config(arguments)
    if not config.resume_train:
        return config
    found = find_checkpoint(config)
    folder = folder_of(found)
    stored = folder / "config.yaml"
    asked = config.run_name
    if stored.exists() and "--config" not in " ".join(arguments):
        config = load_config(arguments, stored)
    run = {} if asked else {"output": str(folder.parent), "run_name": folder.name}
    return config.model_copy(update={"resume_train": str(found)} | run)


def find_checkpoint(config: Config) -> Path:
    """Resolve resume_train: the newest run's folder, a folder, or a checkpoint file.

    Given a folder, the worker loads the newest checkpoint that is readable, and refuses if there is none, because a
    check would have to read the whole file.
    """
    assert config.resume_train is not None
    place = Path(config.output if config.resume_train == "latest" else config.resume_train)
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(f"resume_train: there is no run folder or checkpoint file {place}")
    folders = [place] if config.resume_train != "latest" else sorted(place.iterdir(), reverse=True)
    for folder in folders:
        if snapshots(folder):
            return folder
    raise CheckpointError(f"resume_train: there is no checkpoint in {place}")


def folder_of(found: Path) -> Path:
    """Return the run's folder of a result of find_checkpoint."""
    return found.parent if found.is_file() else found


def with_data(config: Config) -> Config:
    """Return the Config with a data folder; the default is the synthetic set, which one worker makes if necessary."""
    if config.data:
        return config
    if not config.rank:
        from preprocess.synthetic import make_synthetic  # other runs, and workers, do not need it

        make_synthetic(SYNTHETIC)
    return config.model_copy(update={"data": str(SYNTHETIC)})


def with_run(config: Config) -> Config:
    """Return the Config with the name of its run; raise ConfigError instead of overwriting an existing run.

    Of workers started by hand, rank 0 names the run and sends the name to the others.
    """
    if config.rank:
        return config
    name = config.run_name or time.strftime("%Y-%m-%d_%H%M%S")
    folder = Path(config.output, name)
    going_on = config.resume_train and folder_of(Path(config.resume_train)) == folder
    if folder.exists() and any(folder.iterdir()) and not going_on:
        raise ConfigError(f"run_name: the folder {folder} is there already; another name, or resume_train={folder}")
    return config.model_copy(update={"run_name": name})

