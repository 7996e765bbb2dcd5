"""Save the checkpoint of a run, and resume a run from it.

    arrays      every parameter, its velocity or accumulators, its average with ema_decay, the state of the rule, the
                step of the random layers, the mean image
    metadata    position in the training, validation error, settings, number of workers, names of the arrays of the
                rule, network, scale, versions; of the data set: class names, resize, number of training images,
                checksum of its mean image

The random streams are counter based, so the position determines their state. On the CPU a resumed run is bit-exact.
"""

import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytensor

from alexnet.config import Config
from alexnet.config.yaml_text import as_yaml
from alexnet.data.augment import IMAGE_SIZE, UNSCALED, Scale, scale_of
from alexnet.data.dataset import Dataset
from alexnet.data.image_listing import identity
from alexnet.native.untrusted import checksum
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import MEAN, Arrays, CheckpointError, Metadata
from alexnet.run.folder import OF_ONE_START
from alexnet.training.loop import Diverged, Position
from alexnet.training.network import Network
from alexnet.training.update_settings import UpdateSettings, WeightAverageSettings

MEAN_IMAGE = (3, IMAGE_SIZE, IMAGE_SIZE), np.dtype(np.float32)
MID_EPOCH = ("random_seed", "shuffle")  # fixed within an epoch: with the images per step, they determine its batches
# types of the metadata and settings that a resumed run reads; older checkpoints lack some
METADATA: dict[str, type | tuple[type, ...]] = {
    "config": dict, "workers": int, "rule_state": list, "classes": int, "class_names": (list, type(None)),
    "resize": str, "train_images": int, "data_mean_crc32": str,
}
SETTINGS: dict[str, type | tuple[type, ...]] = {
    "frozen_layers": list, "update": str, "use_momentum": bool, "use_nesterov_momentum": bool,
    "ema_decay": (int, float), "batch_size": int,
}
# of older checkpoints, which have no setting update
FORMER_UPDATE = {"update": "auto", "use_momentum": True, "use_nesterov_momentum": False}


def save(
    folder: str | Path, position: Position, network: Network, data: Dataset, config: Config, error: float | None = None
) -> None:
    """Write the checkpoint of a run at `position` into its folder and remove those beyond keep_snapshots.

    The one with the lowest validation error is kept under a second name, BEST.

    Args:
        error: top-1 validation error at this position, in [0, 1]; None if unknown.

    Raises:
        CheckpointError: the file cannot be written.
        Diverged: a parameter or velocity is not finite; existing checkpoints are kept.
    """
    arrays = network.get_state() | {MEAN: network.mean}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise Diverged(f"{name} contains values that are not finite after iteration {position.iteration}")
    metadata = {
        "position": position._asdict(),
        "validation_error": error,
        "model": config.model,
        "config": config.as_dict(),
        "workers": data.train.size,
        "rule_state": [variable.name for variable in network.rule_state],
        "classes": data.classes,
        "class_names": data.class_names,
        "resize": data.resize,
        "scale": network.scale,
        "train_images": data.train.n,
        "data_mean_crc32": checksum(data.mean),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pytensor": pytensor.__version__},
    }
    path = checkpoint_format.snapshot_path(folder, position.iteration)
    checkpoint_format.save(path, arrays, metadata)
    if error is not None:
        checkpoint_format.keep_best(path, error)
    checkpoint_format.prune(folder, config.keep_snapshots, path)


def check_room(folder: str | Path, network: Network, config: Config, warn: Callable[[str], None]) -> None:
    """Warn if the disk cannot hold keep_snapshots + 2 checkpoints.

    One is written before the oldest is removed, and the best may be older than those that are kept.

    Args:
        folder: the run's folder, which need not exist yet.

    Raises:
        CheckpointError: the disk cannot hold one.
    """
    size = network.state_bytes + network.mean.nbytes
    present = sum(path.stat().st_size for path in checkpoint_format.snapshots(folder))
    folder = Path(folder)
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    count = (config.keep_snapshots or 1) + 2
    numbers = f"{folder} has {free / 1e6:,.1f} MB free, and a checkpoint of this network takes {size / 1e6:,.1f} MB"
    remedy = "free some space or choose another folder with output="
    if free < size:
        raise CheckpointError(f"{numbers}: {remedy}")
    if free + present < count * size:
        warn(f"{numbers}, so it cannot hold {count} of them (keep_snapshots + 2): {remedy}")


class Snapshot(NamedTuple):
    """A loaded checkpoint: its file, arrays and metadata."""

    path: Path
    arrays: Arrays
    metadata: Metadata

    @property
    def mean(self) -> np.ndarray:
        """The mean image, float32 (3, 256, 256). Raises CheckpointError if the checkpoint has none."""
        present = {name: array for name, array in self.arrays.items() if name == MEAN}
        checkpoint_format.check_arrays(present, {MEAN: MEAN_IMAGE}, self.path)
        return present[MEAN]

    @property
    def scale(self) -> Scale:
        """The factor of each channel after the mean is subtracted. Raises CheckpointError if it is invalid."""
        try:
            return scale_of(self.metadata.get("scale", UNSCALED))
        except ValueError as error:
            raise CheckpointError(f"{self.path} has {error}") from error


def load(place: str | Path, mean_only: bool = False) -> Snapshot:
    """Load a checkpoint file, or the newest loadable checkpoint of a run's folder.

    Args:
        mean_only: load no array but the mean image.

    Raises:
        CheckpointError: the file, or every checkpoint of the folder, is missing or damaged.
    """
    snapshot = Snapshot(*checkpoint_format.load_from(place, (lambda metadata: (MEAN,)) if mean_only else None))
    check_types(snapshot.metadata, METADATA, snapshot.path)
    check_types(snapshot.metadata.get("config", {}), SETTINGS, snapshot.path)
    return snapshot


def check_types(values: Metadata, types: Mapping[str, type | tuple[type, ...]], path: Path) -> None:
    """Raise CheckpointError if a value that a resumed run reads has another type than save() writes."""
    for name, kind in types.items():
        value = values.get(name)
        texts = value if isinstance(value, list) else ()
        number = value if isinstance(value, int | float) else 0
        is_valid = isinstance(value, kind) and all(isinstance(text, str) for text in texts) and abs(number) < 1 << 63
        if name in values and not is_valid:
            raise CheckpointError(f"{path} is no checkpoint of a run: its {name} is {value!r}")


def restore(snapshot: Snapshot, network: Network, config: Config, workers: int = 1) -> Position:
    """Set the network to the state of a Snapshot. Returns the Position to resume from.

    The state of another rule than the network's is dropped; a rule whose state was not saved keeps its initial one.

    Args:
        workers: number of workers of this run; may differ from that of the saved run.

    Raises:
        CheckpointError: the model, the arrays, frozen_layers or the update rule differ, or the checkpoint was saved
            within an epoch and settings that determine the order of the batches have changed.
    """
    path, arrays, metadata = snapshot
    checkpoint_format.check_metadata(metadata, {"model": config.model}, path)
    position = position_of(metadata, path)
    check_frozen(metadata, config, path)
    check_update(metadata, config, path)
    check_average(metadata, config, path)
    saved = set(metadata.get("rule_state", ()))
    own = {variable.name for variable in network.rule_state}
    arrays = {name: array for name, array in arrays.items() if name not in saved - own}
    state = network.get_state()
    expected = {name: (array.shape, array.dtype) for name, array in state.items() if name not in own - saved}
    checkpoint_format.check_arrays(arrays, expected | {MEAN: MEAN_IMAGE}, path)
    if position.batch:
        check_order(metadata, position, config, workers, path)
    network.set_state(state | {name: arrays[name] for name in expected})
    return position


def check_data(metadata: Metadata, data: Dataset, path: Path) -> list[str]:
    """Compare a data set with that of the checkpoint; return messages about differences that do no harm.

    Raises:
        CheckpointError: the classes differ, the images are resized in another way, or their number changes within an
            epoch.
    """
    cure = f"resume with the run's own data, or start a new run with weights={path}"
    classes = metadata.get("classes", data.classes)
    if classes != data.classes:
        raise CheckpointError(f"{path} was trained on {classes} classes, {data.path} has {data.classes}; {cure}")
    names = zip(metadata.get("class_names") or (), data.class_names or (), strict=False)
    for label, (before, now) in enumerate(names):
        if identity(before) != identity(now):
            raise CheckpointError(f"class {label} of {path} is {before!r}, that of {data.path} is {now!r}; {cure}")
    resize = metadata.get("resize", data.resize)
    if resize != data.resize:
        raise CheckpointError(
            f"{path} was trained on images resized by {resize}, those of {data.path} are by {data.resize}; {cure}"
        )
    images = metadata.get("train_images", data.train.n)
    if images != data.train.n and position_of(metadata, path).batch:
        raise CheckpointError(
            f"{path} was saved within an epoch of {images} training images, {data.path} has {data.train.n}; {cure}"
        )
    mean = checksum(data.mean)
    if metadata.get("data_mean_crc32", mean) != mean:
        return [f"{data.path} has another mean image than the run's data; that of the checkpoint is subtracted"]
    return []


def changed_settings(metadata: Metadata, config: Config) -> str:
    """Describe the settings that differ from those of the checkpoint, as `name old -> new`; empty if there are none."""
    before = metadata.get("config", {})
    return ", ".join(
        f"{name} {as_yaml(before[name])} -> {as_yaml(value)}"
        for name, value in config.as_dict().items()
        if name in before and name not in OF_ONE_START and before[name] != value
    )


def check_frozen(metadata: Metadata, config: Config, path: Path) -> None:
    """Raise CheckpointError if frozen_layers differs from that of the checkpoint.

    A frozen layer has no velocity in the checkpoint, so it cannot resume as a trainable layer.
    """
    before = metadata.get("config", {}).get("frozen_layers", [])
    if set(before) != set(config.frozen_layers):
        was, now = (", ".join(layers) or "none" for layers in (before, config.frozen_layers))
        raise CheckpointError(
            f"{path} was saved with frozen_layers {was}, this run has {now}; weights={path} would restart from it"
        )


def check_update(metadata: Metadata, config: Config, path: Path) -> None:
    """Raise CheckpointError if the update rule differs from that of the checkpoint.

    The state of one rule has no meaning for another. Only momentum and nesterov are interchangeable: both keep
    velocities.
    """
    before = FORMER_UPDATE | metadata.get("config", {})
    was = UpdateSettings.model_construct(**{name: before[name] for name in FORMER_UPDATE}).rule
    now = config.section(UpdateSettings).rule
    if was != now and {was, now} != {"momentum", "nesterov"}:
        raise CheckpointError(
            f"{path} was saved with update {was}, this run has {now}; weights={path} would restart from it"
        )


def check_average(metadata: Metadata, config: Config, path: Path) -> None:
    """Raise CheckpointError if this run averages the weights and the checkpoint has no averages, or vice versa."""
    was = metadata.get("config", {}).get("ema_decay", 0.0)
    now = config.section(WeightAverageSettings).ema_decay
    if bool(was) != bool(now):
        raise CheckpointError(
            f"{path} was saved with ema_decay {was:g}, this run has {now:g}; weights={path} would restart from it"
        )


def check_order(metadata: Metadata, position: Position, config: Config, workers: int, path: Path) -> None:
    """Raise CheckpointError unless this run's batches equal those of the checkpoint's unfinished epoch."""
    before = metadata.get("config", {})
    within = f"{path} was saved within epoch {position.epoch + 1}"
    if missing := {*MID_EPOCH, "batch_size"} - before.keys():
        raise CheckpointError(f"{within}, and does not state {min(missing)}, which determines its batches")
    for key in MID_EPOCH:
        if before[key] != getattr(config, key):
            raise CheckpointError(f"{within}, so {key} must stay {before[key]}, got {getattr(config, key)}")
    saved = metadata.get("workers", 1)
    if before["batch_size"] * saved != config.batch_size * workers:
        raise CheckpointError(
            f"{within}, so workers * batch_size must stay {saved} * {before['batch_size']}, "
            f"got {workers} * {config.batch_size}; a checkpoint between two epochs can be resumed with any"
        )


def position_of(metadata: Metadata, path: Path) -> Position:
    """Return the Position stored in a checkpoint's metadata. Raises CheckpointError if there is none."""
    try:
        epoch, batch, iteration, errors = (metadata["position"][field] for field in Position._fields)
        return Position(int(epoch), int(batch), int(iteration), tuple(map(float, errors)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} has no training position, so it is not the checkpoint of a run") from error
