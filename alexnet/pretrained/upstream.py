"""theano_alexnet's weights: a folder or a zip of W_0_65.npy, b_0_65.npy, W0_1_65.npy, W1_1_65.npy, b0_1_65.npy …

A file name consists of W or b, the half of a grouped layer, the layer (0 to 4: conv1 to conv5; 5 to 7: fc6 to fc8), and
the epoch.

    conv    (in, row, column, out), for a true convolution: rows and columns are reversed relative to a correlation
    halves  conv2, conv4 and conv5 are split in two files along out
    fc      (in, out); theano_alexnet multiplies the outputs of fc6 and fc7 by 0.5, the keep probability of dropout,
            at test time

Our dropout divides by the keep probability during training instead, so loading multiplies fc7.W and fc8.W by 0.5. A
power of two leaves the significand unchanged, so files written by save() load bit for bit. In files from other
programs, values below 2**-125 may be rounded by 2**-150. save() refuses values of 2**127 and above in fc7.W and fc8.W.

Source: Ding et al. 2014, theano_alexnet: lib/layers.py (ConvPoolLayer, DropoutLayer), lib/tools.py (save_weights).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from alexnet.data.augment import IMAGE_SIZE, UNSCALED
from alexnet.native.untrusted import parse_json
from alexnet.pretrained.npy_files import Files, Folder, npy, opened, writing
from alexnet.pretrained.weights import MAX_CLASSES, Weights, WeightsError, checked, shapes

Plan: TypeAlias = Mapping[str, Sequence[tuple[str, tuple[int, ...]]]]     # parameter -> (file, shape) of its parts

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
HALVED = ("conv2", "conv4", "conv5")
AFTER_DROPOUT = ("fc7.W", "fc8.W")
KEPT = np.float32(0.5)                           # keep probability of dropout
NAME = re.compile(r"[Wb][01]?_(?P<layer>[0-9]{1,4})_(?P<epoch>[0-9]{1,9})\.npy")
MEANS = ("img_mean.npy", "misc/img_mean.npy")    # in the folder or its parent
LARGEST_MEAN = 3 * IMAGE_SIZE**2                 # maximum number of values
LISTING = "weights.json"                         # metadata and checksums of our exports
LONGEST_LISTING = 1 << 24                        # maximum size in bytes
PUBLISHED_SHA1 = "58950804f50f8d1a76705e1b28d3546e12ea8a81"      # parameters_releasing.zip, hdl.handle.net/10864/10911
PUBLISHED_EPOCH = 65                             # programs that read the published weights expect this epoch in names


def load(path: Path, unflipped: bool = False, epoch: int | None = None) -> Weights:
    """Load the Weights in theano_alexnet's folder or zip. Files of velocities, learning rates and records are ignored.

    Args:
        unflipped: the filters already are those of a cross-correlation, as trained with lib_conv "cudaconvnet"
            (FilterActs).
        epoch: the epoch to load; None for the newest.

    Raises:
        WeightsError: the files cannot be read or do not match the network.
    """
    with opened(path, NAME) as files:
        listing = listing_of(files)
        epochs = epochs_in(files)
        chosen = epochs[-1] if epoch is None else epoch
        if chosen not in epochs:
            raise WeightsError(f"{path} has no epoch {epoch}, but {listed(epochs)}")
        classes = files.small(f"b_7_{chosen}.npy", MAX_CLASSES).size
        plan = files_of(classes, chosen)
        check_names(files, plan, chosen)
        parameters = {
            name: ours(name, [files.array(*part) for part in parts], unflipped) for name, parts in plan.items()
        }
        mean_name, mean = mean_of(files)
        origin = f"theano_alexnet's epoch {chosen} in {files.title(PUBLISHED_SHA1)}"
    notes = [
        f"the newest of {listed(epochs)}" if len(epochs) > 1 and epoch is None else "",
        "filters as they are, unflipped" if unflipped else "",
        f"mean image {mean_name}" if mean_name else "without a mean image",
    ]
    return checked(Weights(
        model="alexnet",
        arrays=parameters,
        mean=mean,
        class_names=listing.get("class_names"),
        resize=listing.get("resize", "squash"),
        origin="; ".join([origin, *filter(None, notes)]),
    ), path)


def files_of(classes: int, epoch: int) -> Plan:
    """Return parameter name -> [(file, shape)], with one file, or the files of both halves in order."""
    plan = {}
    for name, shape in shapes("alexnet", classes).items():
        layer, letter = name.split(".")
        halves = ("0", "1") if layer in HALVED else ("",)
        part = (*shape[:-1], shape[-1] // len(halves))
        plan[name] = [(f"{letter}{half}_{LAYERS.index(layer)}_{epoch}.npy", part) for half in halves]
    return plan


def ours(name: str, parts: Sequence[np.ndarray], unflipped: bool = False) -> np.ndarray:
    """Convert the arrays of a parameter's files to our layout."""
    array = np.concatenate(parts, axis=-1)
    if array.ndim == 4 and not unflipped:
        array = array[:, ::-1, ::-1, :]
    return np.ascontiguousarray(array * KEPT if name in AFTER_DROPOUT else array)


def theirs(name: str, array: np.ndarray) -> list[np.ndarray]:
    """Convert a parameter to the arrays of its files; the inverse of `ours`."""
    if array.ndim == 4:
        array = array[:, ::-1, ::-1, :]
    if name in AFTER_DROPOUT:
        with np.errstate(over="ignore"):
            array = array / KEPT
        if not np.isfinite(array).all():
            raise WeightsError(f"{name} holds values of 2**127 or more, and theano_alexnet's files hold twice as much")
    return np.split(array, 2 if name.split(".")[0] in HALVED else 1, axis=-1)


def epochs_in(files: Files) -> list[int]:
    """Return the sorted epochs in the file names; raises WeightsError if there are none."""
    epochs = {int(match["epoch"]) for match in map(NAME.fullmatch, files.names) if match}
    if not epochs:
        raise WeightsError(f"{files.path} has no file of theano_alexnet's arrays W_0_65.npy …")
    return sorted(epochs)


def listed(epochs: Sequence[int]) -> str:
    """Return "epochs 7, 65"."""
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))}"


def check_names(files: Files, plan: Plan, epoch: int) -> None:
    """Raise WeightsError if a file of the plan is missing, or the epoch has an array that the network does not have."""
    needed = {file: name for name, parts in plan.items() for file, _ in parts}
    for file in needed:
        if file not in files.names:
            bias = file[0] == "b" and file[1] != "_"
            hint = "; early versions of theano_alexnet did not save the halves' biases" if bias else ""
            raise WeightsError(f"{files.path} has no {file}, and so no whole epoch {epoch}{hint}")
    there = {name for name in files.names if (match := NAME.fullmatch(name)) and int(match["epoch"]) == epoch}
    if others := there - needed.keys():
        raise WeightsError(f"{files.path} has a {min(others)}, which theano_alexnet's network does not know")


def mean_of(files: Files) -> tuple[str, np.ndarray] | tuple[None, None]:
    """Return (name, array) of the mean image in the folder or its parent, or (None, None) if there is none."""
    beside: list[tuple[Files, str]] = [(files, f"../{name}") for name in MEANS]
    if files.packed:
        beside += [(Folder(files.path.parent), name) for name in MEANS]
    for place, name in [*((files, name) for name in MEANS), *beside]:
        if place.has(name):
            return name, place.small(name, LARGEST_MEAN)
    return None, None


# ---- weights.json, which our export writes


def listing_of(files: Files) -> dict[str, Any]:
    """Return weights.json as a dictionary, or {} if there is none.

    The checksums that it lists are set in `files`, which verifies them on reading.

    Raises:
        WeightsError: weights.json is malformed, belongs to another network, or lists a missing file.
    """
    if not files.has(LISTING):
        return {}
    try:
        listing = parse_json(files.read(LISTING, LONGEST_LISTING))
        sums, model = listing["sha256"], listing["model"]
        files.sums = {str(name): str(value) for name, value in sums.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{files.path} has a {LISTING} that is not as export writes it") from error
    if model != "alexnet":
        raise WeightsError(f"{files.path} has a {LISTING} of a network {model!r}; theano_alexnet's is alexnet")
    if lost := [name for name in files.sums if name not in files.names]:
        raise WeightsError(f"{files.path} has no {lost[0]}, which its {LISTING} lists")
    return listing


def save(weights: Weights, path: Path, epoch: int = PUBLISHED_EPOCH) -> None:
    """Write Weights atomically as theano_alexnet's folder, or as a zip if the path ends in .zip.

    Args:
        epoch: the epoch in the file names.

    Raises:
        WeightsError: the network is not alexnet, or the files cannot be written.
    """
    if weights.scale != UNSCALED:
        raise WeightsError(
            f"theano_alexnet's network takes grey levels, these weights take them times {weights.scale}; write them as "
            ".safetensors or .onnx"
        )
    if weights.model != "alexnet":
        raise WeightsError(
            f"theano_alexnet's network is alexnet, these weights are {weights.model}'s, which normalises otherwise; "
            "write them as .safetensors or .onnx"
        )
    with writing(path) as target:
        for name, files in files_of(weights.classes, epoch).items():
            for (file, _), array in zip(files, theirs(name, weights.arrays[name]), strict=True):
                target.add(file, npy(array))
        if weights.mean is not None:
            target.add(MEANS[0], npy(weights.mean))
        names = list(weights.class_names) if weights.class_names else None
        listing = {"model": weights.model, "classes": weights.classes, "class_names": names, "resize": weights.resize}
        target.add(LISTING, json.dumps(listing | {"sha256": target.sums}, indent=1).encode())
