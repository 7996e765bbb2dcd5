"""The format of this project: run folders, checkpoints, and weights written by `python -m alexnet export`."""

from collections.abc import Mapping
from pathlib import Path

from alexnet.data.augment import UNSCALED
from alexnet.models import MODELS
from alexnet.pretrained.weights import Weights, WeightsError, checked, classes_of, shapes
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import MEAN, CheckpointError
from alexnet.training.updates import AVERAGE


def load(path: Path) -> Weights:
    """Load the Weights of one of our safetensors files, or of the newest checkpoint in a run folder.

    The velocities in a checkpoint are not read. Averages of weights (ema_decay) replace the weights.

    Raises:
        WeightsError: the file cannot be read or has another format.
    """
    try:
        path, arrays, metadata = checkpoint_format.load_from(path, names_of_weights)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    if not {"model", "classes"} <= metadata.keys():
        raise WeightsError(f"{path} has no model in its metadata")
    weights = Weights(
        model=metadata["model"],
        arrays={
            name: arrays.get(f"{name}.{AVERAGE}", array) for name, array in arrays.items()
            if name != MEAN and not name.endswith(f".{AVERAGE}")
        },
        mean=arrays.get(MEAN),
        class_names=metadata.get("class_names"),
        resize=metadata.get("resize", "squash"),
        origin=metadata.get("origin") or f"{metadata['model']} of {short_name(path)}",
        scale=metadata.get("scale", UNSCALED),
    )
    classes = classes_of(weights, path)
    if metadata["classes"] != classes:
        raise WeightsError(f"{path} declares {metadata['classes']!r} classes, its network has {classes}")
    return checked(weights, path)


def short_name(path: Path) -> str:
    """Return the name of a file without its folder; for a checkpoint, with the name of the run's folder."""
    is_checkpoint = checkpoint_format.NAME.fullmatch(path.name) and path.parent.name
    return f"{path.parent.name}/{path.name}" if is_checkpoint else path.name


def names_of_weights(metadata: Mapping[str, object]) -> list[str]:
    """Return the names of the arrays to read for the model in the metadata; empty if the model is unknown."""
    model = metadata.get("model")
    if not isinstance(model, str) or model not in MODELS:
        return []
    names = shapes(model, 1)
    return [MEAN, *names, *(f"{name}.{AVERAGE}" for name in names)]


def save(weights: Weights, path: Path) -> None:
    """Write Weights to a safetensors file with checksums of all its content; raises WeightsError."""
    arrays = dict(weights.arrays)
    if weights.mean is not None:
        arrays[MEAN] = weights.mean
    names = list(weights.class_names) if weights.class_names else None
    metadata = {
        "model": weights.model, "classes": weights.classes, "class_names": names, "resize": weights.resize,
        "scale": weights.scale, "origin": weights.origin,
    }
    try:
        checkpoint_format.save(path, arrays, metadata)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
