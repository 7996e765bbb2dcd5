"""What a run's checkpoint holds, and how a run goes on from one.

    arrays      every parameter and velocity, the step of the random layers, the mean image
    metadata    position in the training, settings, number of workers, network, class names, versions

The random streams are counter based, so the position is all that they need; restoring is bit-exact on the CPU.
"""

import platform
from pathlib import Path

import numpy as np
import pytensor

from alexnet import checkpoint
from alexnet.checkpoint import CheckpointError
from alexnet.training import Diverged, Position

MEAN = "mean"                           # the mean image's name among the arrays
MID_EPOCH = ("random_seed", "shuffle")  # must stay to go on within an epoch: with the size of a step they order it


def save(folder, position, network, data, config):
    """Write the checkpoint of a run at `position` into its folder and remove those beyond keep_snapshots.

    Raises Diverged, and keeps what is there, when a parameter or velocity is not finite.
    """
    arrays = network.get_state() | {MEAN: network.mean}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise Diverged(f"{name} holds values that are not finite after iteration {position.iteration}")
    metadata = {
        "position": position._asdict(),
        "model": config.model,
        "config": config.model_dump(mode="json"),
        "workers": data.train.size,
        "classes": data.classes,
        "class_names": data.class_names,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pytensor": pytensor.__version__},
    }
    checkpoint.save(checkpoint.snapshot_path(folder, position.iteration), arrays, metadata)
    checkpoint.prune(folder, config.keep_snapshots)


def newest(folder):
    """The newest checkpoint file of a run's folder, or None."""
    return next(iter(checkpoint.snapshots(folder)), None)


def restore(place, network, config, workers=1):
    """Bring the network to the state in a checkpoint; returns its path and the Position to go on from.

    place    a checkpoint, or a run's folder: then the newest in it that loads
    workers  of this run; those of the run that saved may have been more or fewer
    Raises CheckpointError when the arrays are not this network's, or when settings that order the batches
    have changed and the checkpoint lies within an epoch.
    """
    path, arrays, metadata = loaded(place)
    checkpoint.check_metadata(metadata, {"model": config.model}, path)
    expected = {name: (array.shape, array.dtype) for name, array in network.get_state().items()}
    expected[MEAN] = (network.mean.shape, network.mean.dtype)
    checkpoint.check_arrays(arrays, expected, path)
    position = position_of(metadata, path)
    if position.batch:
        check_order(metadata, position, config, workers, path)
    arrays.pop(MEAN)
    network.set_state(arrays)
    return path, position


def check_order(metadata, position, config, workers, path):
    """Raise CheckpointError unless this run's batches are those of the epoch that the checkpoint lies within."""
    before, within = metadata["config"], f"{path} stands within epoch {position.epoch + 1}"
    for key in MID_EPOCH:
        if before[key] != getattr(config, key):
            raise CheckpointError(f"{within}, so {key} must stay {before[key]}, got {getattr(config, key)}")
    saved = metadata.get("workers", 1)
    if before["batch_size"] * saved != config.batch_size * workers:
        raise CheckpointError(
            f"{within}, so workers * batch_size must stay {saved} * {before['batch_size']}, "
            f"got {workers} * {config.batch_size}; a checkpoint between two epochs goes on with any"
        )


def loaded(place):
    """Path, arrays and metadata of a checkpoint, or of the newest that loads in a run's folder."""
    if not Path(place).is_dir():
        return place, *checkpoint.load(place)
    found = checkpoint.load_latest(place)
    if found is None:
        raise CheckpointError(f"{place} holds no checkpoint")
    return found


def position_of(metadata, path):
    """The Position in a checkpoint's metadata; raises CheckpointError where there is none."""
    try:
        epoch, batch, iteration, errors = (metadata["position"][field] for field in Position._fields)
        return Position(int(epoch), int(batch), int(iteration), tuple(map(float, errors)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say where training stood, so it is no run's checkpoint") from error
