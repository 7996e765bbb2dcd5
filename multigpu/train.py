"""The command `train`: settings, data and folder of a run, then its workers. train.py documents the usage."""

import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from alexnet.config import Config, ConfigError, check_sections, load_config
from alexnet.data.dataset import DataError
from alexnet.native.atomic import reason
from alexnet.native.console import protect
from alexnet.native.main_module import check_main_module
from alexnet.native.packages import TRAIN_PROGRAM, ended_by_ctrl_c
from alexnet.native.pytensor_flags import set_pytensor_flags
from alexnet.run.checkpoint_format import CheckpointError, Metadata, load_from, snapshots
from alexnet.run.folder import OF_ONE_START, check_new, folder_of, is_exact, newest_run, resumes_in_place
from multigpu.launch.launcher import launch
from multigpu.launch.workers import WorkFunction
from multigpu.mpi import why_no_mpi
from multigpu.mpi.rank_wrapper import end_with_proxy, wrap_rank
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
    protect()
    set_pytensor_flags()                         # before a module that a setting names imports PyTensor
    if problem := check_main_module() or (started_by_mpi() and why_no_mpi()):
        if is_first_rank():
            print(f"{TRAIN_PROGRAM}: {problem}", file=sys.stderr)
        return 2
    if started_by_mpi():
        end_with_proxy()
        if is_elastic(arguments):
            wrap_rank()
        from multigpu.mpi import job  # importing mpi4py initialises MPI

        return job.run(lambda: settings_of_run(arguments), entry)
    try:
        config = settings_of_run(arguments)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"{TRAIN_PROGRAM}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{TRAIN_PROGRAM}: {reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{TRAIN_PROGRAM}: interrupted before the training", file=sys.stderr)
        return 130
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
    with suppress(ConfigError, CheckpointError), ended_by_ctrl_c():          # it imports packages
        return RULES.find(load_settings(arguments).rule).elastic
    return False


def settings_of_run(arguments: Sequence[str]) -> Config:
    """Return the Config of a run, with its data and its name; the workers check the settings of rules."""
    with ended_by_ctrl_c():                      # it imports packages
        config = load_settings(arguments)
    return with_run(with_absolute_paths(with_data(config)))


def load_settings(arguments: Sequence[str]) -> Config:
    """Return the Config of the command line; if it resumes a run, the checkpoint's settings are the defaults.

    Given a folder, the worker loads the newest checkpoint that is readable, because a check has to read the whole file.
    Here only the metadata are read.
    """
    config = load_config(arguments)
    if not config.resume_train:
        return config
    found, notes = find_checkpoint(config)
    path, metadata = metadata_of(found)
    if not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"{path} is not the checkpoint of a run; weights={path} starts a run with its weights")
    folder = folder_of(found)
    if folder.name in ("", ".."):                # resume_train=. within the folder
        folder = folder.resolve()
    stored = {name: value for name, value in metadata["config"].items() if name not in OF_ONE_START}
    run = {} if config.run_name else {"output": str(folder.parent), "run_name": folder.name}
    config = load_config(arguments, stored, path)
    return config.model_copy(update={"resume_train": str(found)} | run).with_notes(*notes)


def find_checkpoint(config: Config) -> tuple[Path, list[str]]:
    """Resolve resume_train; return the run's folder or the checkpoint file, and messages for the log."""
    assert config.resume_train is not None
    place = Path(config.output if config.resume_train == "latest" else config.resume_train).expanduser()
    if place.is_file():
        return place, []
    if not place.is_dir():
        raise CheckpointError(f"resume_train: there is no run folder or checkpoint file {place}")
    if config.resume_train != "latest":
        if not snapshots(place):
            raise CheckpointError(f"resume_train: there is no checkpoint in {place}")
        return place, []
    newest, without = newest_run(place)
    if not without:
        return newest, []
    listed = ", ".join(map(str, without))
    runs = "this newer run has" if len(without) == 1 else "these newer runs have"
    return newest, [f"resume_train=latest is {newest}; {runs} no checkpoint: {listed}"]


def metadata_of(place: Path) -> tuple[Path, Metadata]:
    """Return a checkpoint's path and metadata, of the newest readable one of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # the worker reads the same files and logs the warnings
        path, _, metadata = load_from(place, lambda metadata: ())
    return path, metadata


def with_data(config: Config) -> Config:
    """Return the Config with a data folder; the default is the synthetic set, which one worker makes if necessary."""
    if config.data:
        return config
    if not config.rank:
        with ended_by_ctrl_c():
            from preprocess.synthetic import make_synthetic  # other runs, and workers, do not need it

        if not SYNTHETIC.exists():
            check_names(config)
        make_synthetic(SYNTHETIC)
    return config.model_copy(update={"data": str(SYNTHETIC)})


def check_names(config: Config) -> None:
    """Raise ConfigError for names that the workers would refuse, before something slow."""
    with ended_by_ctrl_c():
        from alexnet.models import model_class  # it imports PyTensor, slowly
        from alexnet.training.updates import find_update_rule  # likewise
        from multigpu.exchange import STRATEGIES, ExchangeSettings  # likewise

    check_sections(config)
    model_class(config.model)
    find_update_rule(config)
    RULES.find(config.rule)
    if (exchange := config.section(ExchangeSettings).exchange) != "auto":
        STRATEGIES.find(exchange)


def with_absolute_paths(config: Config) -> Config:
    """Return the Config with absolute paths of data and weights, so that the run can be resumed in any folder."""
    paths = {name: value for name in ("data", "weights") if (value := getattr(config, name))}
    return config.model_copy(
        update={name: os.path.abspath(os.path.expanduser(value)) for name, value in paths.items()}
    )


def with_run(config: Config) -> Config:
    """Return the Config with the name of its run; raise ConfigError instead of overwriting an existing run.

    Of workers started by hand, rank 0 names the run and sends the name to the others. Rank 0 creates the folder after
    everything has been checked (alexnet.run.folder), under a similar name if this one is taken by then.
    """
    if config.rank:
        return config
    config = config.model_copy(update={"run_name": config.run_name or time.strftime("%Y-%m-%d_%H%M%S")})
    if not resumes_in_place(config):
        check_new(Path(config.output, config.run_name or ""), is_exact(config))
    return config
