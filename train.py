"""Train a network.

    python train.py                                  # a first run: makes a small data set, trains, plots the curves
    python train.py data=/scratch/ilsvrc12           # on a folder made by `python -m preprocess`, or upstream's
    python train.py resume_train=latest              # continue the newest run
    python train.py data=flowers weights=caffenet.caffemodel model=caffenet learning_rate=0.001 layer_rates=fc8:10
                                                     # fine-tune trained weights on other classes
    python train.py devices=cuda0,cuda1              # a worker on each of two GPUs; devices=cpu,cpu needs none
    python train.py rank=0 size=2 device=cuda0       # the same by hand: this, and rank=1 size=2 device=cuda1, with the
                                                     # same other settings in another terminal
    mpiexec -n 4 python -m mpi4py train.py rule=bsp exchange=asa16                   # an MPI job: one rank per worker
    python train.py --help                           # every setting, with its default, unit and source

The run's folder, runs/DATE_TIME, contains the settings, the log, one JSON line and one CSV line per record, curves and
filters as PNG, and checkpoints.  Exit status: 0 done, 2 invalid settings or files, 130 or 143 stopped and saved, 1 a
process died.
"""

import os
import pkgutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from alexnet.config.schema import ConfigError, load_config
from alexnet.data.dataset import DataError
from alexnet.run.checkpoint_format import CheckpointError, snapshots
from multigpu.launcher import launch
from multigpu.mpi.rank_wrapper import wrap_rank
from multigpu.rules import RULES

SYNTHETIC = Path("data", "synthetic")            # the data set of a run without the setting data
JOB = "multigpu.mpi.job:run"                         # by name: importing mpi4py initialises MPI
MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")           # of Open MPI, and of MPICH and its derivatives
MAKE_SYNTHETIC = "preprocess.synthetic:make_synthetic"       # by name: other runs and workers do not need preprocess


def main(arguments, entry=None):
    """Run train.py with these arguments; return the exit status. `entry` is what each worker runs, see launch()."""
    if started_by_mpi():
        if does_without_clients(arguments):
            wrap_rank()
        return pkgutil.resolve_name(JOB)(lambda: settled(arguments), entry)
    try:
        config = settled(arguments)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return launch(config, entry)


def started_by_mpi():
    """Return whether this process is a rank of an MPI job."""
    return "mpi4py" in sys.modules or any(name in os.environ for name in MPI_VARIABLES)


def does_without_clients(arguments):
    """Return whether the settings' rule is elastic; rank 0 reports errors in the settings."""
    if "--help" in arguments:
        return False
    with suppress(ConfigError, CheckpointError):
        config = load_settings(arguments)
        return config.rule in RULES and RULES[config.rule].elastic
    return False


def settled(arguments):
    """Return the Config of a run, with its data and its name."""
    return with_run(with_data(load_settings(arguments)))


def load_settings(arguments):
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


def find_checkpoint(config):
    """Resolve resume_train: the newest run's folder, a folder, or a checkpoint file.

    Given a folder, the worker loads the newest checkpoint that is readable, and refuses if there is none, because a
    check would have to read the whole file.
    """
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


def folder_of(found):
    """Return the run's folder of a result of find_checkpoint."""
    return found.parent if found.is_file() else found


def with_data(config):
    """Return the Config with a data folder; the default is the synthetic set, which one worker makes if necessary."""
    if config.data:
        return config
    if not config.rank:
        pkgutil.resolve_name(MAKE_SYNTHETIC)(SYNTHETIC)
    return config.model_copy(update={"data": str(SYNTHETIC)})


def with_run(config):
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
