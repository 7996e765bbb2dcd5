"""Our own files: a run's folder, its checkpoints, and weights alone in the same format (`python -m alexnet export`)."""

from alexnet import checkpoint
from alexnet.checkpoint import CheckpointError
from alexnet.pretrained.weights import Weights, WeightsError, checked, shapes

MEAN = "mean"                           # the mean image's name among the arrays, as in a run's checkpoint


def load(path):
    """The Weights of a safetensors file of ours, or of the newest checkpoint in a run's folder; raises WeightsError."""
    try:
        path, arrays, metadata = loaded(path)
        model, classes = metadata["model"], metadata["classes"]
        names = metadata.get("class_names")
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{path} does not say which network it holds") from error
    wanted = shapes(model, classes)
    return checked(Weights(
        model=model,
        arrays={name: array for name, array in arrays.items() if name in wanted},
        mean=arrays.get(MEAN),
        class_names=tuple(names) if names else None,
        resize=metadata.get("resize", "squash"),
        origin=f"{model} of {path}",
    ), path)  # fmt: skip


def loaded(path):
    if not path.is_dir():
        return path, *checkpoint.load(path)
    found = checkpoint.load_latest(path)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint")
    return found


def save(weights, path):
    """Write Weights to a safetensors file, every bit with a checksum; raises WeightsError."""
    arrays = dict(weights.arrays)
    if weights.mean is not None:
        arrays[MEAN] = weights.mean
    names = list(weights.class_names) if weights.class_names else None
    metadata = {"model": weights.model, "classes": weights.classes, "class_names": names, "resize": weights.resize}
    try:
        checkpoint.save(path, arrays, metadata)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
