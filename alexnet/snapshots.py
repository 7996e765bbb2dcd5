"""What a run's checkpoint holds, and how a run goes on from one.

    arrays      every parameter, its velocity or accumulators, the step of the random layers, the mean image
    metadata    position in the training, settings, number of workers, network, class names, resize, versions

The random streams are counter based, so the position is all that they need; restoring is bit-exact on the CPU.
"""

import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytensor

from alexnet import checkpoint
from alexnet.augment import IMAGE_SIZE
from alexnet.checkpoint import MEAN, CheckpointError
from alexnet.training import Diverged, Position
from alexnet.updates import name_of

MEAN_IMAGE = (3, IMAGE_SIZE, IMAGE_SIZE), np.dtype(np.float32)
MID_EPOCH = ("random_seed", "shuffle")  # must stay to go on within an epoch: with the size of a step they order it
# older checkpoints lack the first
OF_UPDATE = {"update": "auto", "use_momentum": True, "use_nesterov_momentum": False}


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
        "resize": data.resize,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pytensor": pytensor.__version__},
    }
    checkpoint.save(checkpoint.snapshot_path(folder, position.iteration), arrays, metadata)
    checkpoint.prune(folder, config.keep_snapshots)


def newest(folder):
    """The newest checkpoint file of a run's folder, or None."""
    return next(iter(checkpoint.snapshots(folder)), None)


class Snapshot(NamedTuple):
    """A checkpoint that has been read: its file, arrays and metadata."""

    path: Path
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]

    @property
    def mean(self):
        """The mean image; raises CheckpointError where there is none."""
        present = {name: array for name, array in self.arrays.items() if name == MEAN}
        checkpoint.check_arrays(present, {MEAN: MEAN_IMAGE}, self.path)
        return present[MEAN]


def load(place):
    """The Snapshot in a checkpoint file, or the newest that loads in a run's folder; raises CheckpointError."""
    return Snapshot(*checkpoint.load_from(place))


def restore(snapshot, network, config, workers=1):
    """Bring the network to the state in a Snapshot; returns the Position to go on from.

    workers  of this run; those of the run that saved may have been more or fewer
    Raises CheckpointError when the arrays are not this network's, when other layers were frozen or another update has
    kept other things, or when settings that order the batches have changed and the checkpoint lies within an epoch.
    """
    path, arrays, metadata = snapshot
    checkpoint.check_metadata(metadata, {"model": config.model}, path)
    position = position_of(metadata, path)
    check_frozen(metadata, config, path)
    check_update(metadata, config, path)
    expected = {name: (array.shape, array.dtype) for name, array in network.get_state().items()}
    checkpoint.check_arrays(arrays, expected | {MEAN: MEAN_IMAGE}, path)
    if position.batch:
        check_order(metadata, position, config, workers, path)
    network.set_state({name: arrays[name] for name in expected})
    return position


def check_frozen(metadata, config, path):
    """Raise CheckpointError where other layers were frozen: what did not learn has no velocity to go on with."""
    before = metadata.get("config", {}).get("frozen_layers", [])
    if set(before) != set(config.frozen_layers):
        was, now = (", ".join(layers) or "none" for layers in (before, config.frozen_layers))
        raise CheckpointError(
            f"{path} was saved with frozen_layers {was}, this run has {now}; weights={path} would start anew from it"
        )


def check_update(metadata, config, path):
    """Raise CheckpointError where the update was another: what it has kept means nothing to this one.

    Momentum's velocities are Nesterov's, too.
    """
    before = OF_UPDATE | metadata.get("config", {})
    was, now = (name_of(*(settings[key] for key in OF_UPDATE)) for settings in (before, config.model_dump()))
    if was != now and {was, now} != {"momentum", "nesterov"}:
        raise CheckpointError(
            f"{path} was saved with update {was}, this run has {now}; weights={path} would start anew from it"
        )


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


def position_of(metadata, path):
    """The Position in a checkpoint's metadata; raises CheckpointError where there is none."""
    try:
        epoch, batch, iteration, errors = (metadata["position"][field] for field in Position._fields)
        return Position(int(epoch), int(batch), int(iteration), tuple(map(float, errors)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say where training stood, so it is no run's checkpoint") from error
