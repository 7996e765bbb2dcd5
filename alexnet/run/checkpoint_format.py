"""The checkpoint file format: all state needed to resume a run, in one safetensors file, written atomically.

A file holds named arrays and a metadata mapping. Its header stores the record as text: the format version, the
metadata, and dtype, shape and CRC-32 of every array. The CRC-32 of the record is stored next to it. Any flipped bit
is therefore detected, and nothing is unpickled. The file is written atomically: if the process is killed or the disk is
full, the previous file remains.
"""

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from alexnet.native.atomic import PARTIAL, replacing
from alexnet.native.untrusted import InputError, checksum, parse_json

VERSION = 1
MEAN = "mean"                           # name of the mean image's array, in checkpoints and exports
RECORD = {"version": int, "metadata": dict, "arrays": dict}
NAME = re.compile(r"checkpoint_([0-9]{8,})\.safetensors")
BEST = "best.safetensors"               # second name of the checkpoint with the lowest validation error

Arrays = dict[str, np.ndarray]
Metadata = dict[str, Any]                               # JSON-serializable
Wanted = Callable[[Metadata], Iterable[str]]            # metadata -> names of the arrays to read


DTYPES = {                              # those of safetensors, and what NumPy calls them
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}


# the last two: a dtype that NumPy does not have
UNREADABLE = (OSError, SafetensorError, TypeError, AttributeError)


class CheckpointError(InputError):
    """A checkpoint that cannot be written, read or used. The message is one sentence."""


def snapshot_path(folder: str | Path, iteration: int) -> Path:
    """Return the path of the checkpoint of `iteration` in the run folder `folder`."""
    return Path(folder) / f"checkpoint_{iteration:08d}.safetensors"


def snapshots(folder: str | Path) -> list[Path]:
    """Return the checkpoint files of the run folder `folder`, newest first."""
    found = {path: NAME.fullmatch(path.name) for path in Path(folder).glob("checkpoint_*.safetensors")}
    iterations = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(iterations, key=iterations.__getitem__, reverse=True)


def iteration_of(path: Path) -> int | None:
    """Return the iteration in the name of a checkpoint file; None if it has another name."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def newest(folder: str | Path) -> Path | None:
    """Return the newest checkpoint file of a run folder, or None."""
    return next(iter(snapshots(folder)), None)


def save(path: str | Path, arrays: Arrays, metadata: Metadata) -> None:
    """Write `arrays` (name -> ndarray) and `metadata` (JSON-serializable, string keys) atomically to `path`.

    Raises:
        CheckpointError: the file cannot be written; an existing file at `path` is unchanged.
    """
    path = Path(path)
    # an array's memory is written unchanged, so it must be C-contiguous and in the byte order of the format
    arrays = {name: np.require(array, array.dtype.newbyteorder("<"), "C") for name, array in arrays.items()}
    record = json.dumps({
        "version": VERSION,
        "metadata": metadata,
        "arrays": {name: description(array) for name, array in arrays.items()},
    }, default=plain)
    try:
        with replacing(path, fsync=True) as temporary:
            write(temporary, arrays, {"record": record, "record_crc32": checksum(record.encode())})
            temporary.chmod(temporary.parent.stat().st_mode & 0o666)     # as the umask specifies
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be written: {error}") from error


def write(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: the same bytes for the same content.

    safetensors' own save_file writes the metadata in random order. The arrays are in its order: those with the widest
    numbers first, so that each is aligned, then by name.

    Source: the safetensors format, github.com/huggingface/safetensors.
    """
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    end = 0
    for name in order:
        first, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": dtypes[arrays[name].dtype.name], "shape": arrays[name].shape, "data_offsets": [first, end]
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(arrays[name].reshape(-1).view("uint8").data)


def load(path: str | Path, wanted: Wanted | None = None) -> tuple[Arrays, Metadata]:
    """Return (arrays, metadata) of the checkpoint `path`. The checksums of all data read are verified.

    Args:
        wanted: metadata -> names of the arrays to read, where missing ones are ignored; None reads all arrays.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            record = checked_record(file.metadata() or {}, path)
            chosen = set(names if wanted is None else wanted(record["metadata"]))
            arrays = {name: file.get_tensor(name) for name in names if name in chosen}
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is no checkpoint, or damaged: {error}") from error
    for name, array in arrays.items():
        if record["arrays"].get(name) != description(array):
            raise CheckpointError(f"{path} is damaged: {name} is not as it was saved (CRC-32, shape or type)")
    if lost := record["arrays"].keys() - set(names):
        raise CheckpointError(f"{path} is damaged: it lost {min(lost)}")
    return arrays, record["metadata"]


def has_record(path: str | Path) -> bool:
    """Whether save() has written a safetensors file. True also if it cannot be read, so that load() gives a reason."""
    try:
        with safe_open(path, framework="numpy") as file:
            return "record" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return True


def tensors_in(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return name -> (dtype, shape) of the arrays of any safetensors file; raises CheckpointError."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            kinds = {name: str(each.get_dtype()) for name, each in slices.items()}
            dtypes = {name: DTYPES.get(kind, kind) for name, kind in kinds.items()}
            return {name: (dtypes[name], tuple(each.get_shape())) for name, each in slices.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}") from error


def read_tensor(path: str | Path, name: str) -> np.ndarray:
    """Return an array of any safetensors file, without a checksum; raises CheckpointError."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is damaged: {name}: {error}") from error


def load_from(place: str | Path, wanted: Wanted | None = None) -> tuple[Path, Arrays, Metadata]:
    """Return (path, arrays, metadata) of a checkpoint file, or of the newest loadable checkpoint of a run's folder.

    Args:
        wanted: see load.

    Raises:
        CheckpointError: no checkpoint can be loaded.
    """
    place = Path(place)
    if not place.is_dir():
        return place, *load(place, wanted)
    found = load_latest(place, wanted)
    if found is None:
        raise CheckpointError(f"{place} holds no checkpoint")
    return found


def checked_record(header: Mapping[str, str], path: Path) -> Metadata:
    """Return the record in the `header` of a safetensors file.

    Raises:
        CheckpointError: the header has no record, or a damaged one, or its format version is too new.
    """
    text = header.get("record")
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of a run: it has no record")
    if header.get("record_crc32") != checksum(text.encode()):
        raise CheckpointError(f"{path} is damaged: its record is not as it was saved (CRC-32)")
    record = parsed(text)
    if not all(isinstance(record.get(part), kind) for part, kind in RECORD.items()):
        raise CheckpointError(f"{path} is no checkpoint of a run: its record is not one")
    if record["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format version {record['version']}, this program reads up to {VERSION}: use a newer one"
        )
    return record


def parsed(text: str) -> Metadata:
    """Parse JSON `text`. Returns an empty dictionary if it is not a JSON object."""
    try:
        record = parse_json(text)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def check_arrays(
    arrays: Arrays, expected: Mapping[str, tuple[Collection[int], npt.DTypeLike]], source: str | Path
) -> None:
    """Raise CheckpointError unless `arrays` has exactly the names, shapes and dtypes of `expected`.

    Args:
        expected: name -> (shape, dtype).
        source: the checkpoint's path, for the message.
    """
    for name, (shape, dtype) in expected.items():
        if name not in arrays:
            raise CheckpointError(f"{source} has no array {name}, which this network needs")
        if arrays[name].shape != tuple(shape):
            raise CheckpointError(f"{source}: {name} must have shape {tuple(shape)}, got {arrays[name].shape}")
        if arrays[name].dtype != np.dtype(dtype):
            raise CheckpointError(f"{source}: {name} must be {np.dtype(dtype)}, got {arrays[name].dtype}")
    if extra := arrays.keys() - expected.keys():
        raise CheckpointError(f"{source} has an array {min(extra)}, which this network does not know")


def check_metadata(metadata: Metadata, expected: Metadata, source: str | Path) -> None:
    """Raise CheckpointError unless `metadata` has the values of `expected` (name -> value), such as the model."""
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise CheckpointError(f"{source} was saved with {name} {metadata.get(name)!r}, this run has {value!r}")


def latest(folder: str | Path) -> Path | None:
    """Return the newest loadable checkpoint file of a run folder, or None if it has none; see load_latest."""
    found = load_latest(folder)
    return found[0] if found else None


def load_latest(folder: str | Path, wanted: Wanted | None = None) -> tuple[Path, Arrays, Metadata] | None:
    """Return (path, arrays, metadata) of the newest loadable checkpoint of a run folder, or None if it has none.

    A checkpoint that cannot be loaded is skipped with a warning.

    Args:
        wanted: see load.

    Raises:
        CheckpointError: the folder has checkpoints, but none can be loaded.
    """
    found = snapshots(folder)
    for path in found:
        try:
            return path, *load(path, wanted)
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    if found != snapshots(folder):               # its run has saved and pruned during the loading
        return load_latest(folder, wanted)
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} loads")
    return None


def keep_best(path: Path, error: float) -> None:
    """Give the checkpoint `path` the name BEST, too, if no earlier one of its folder has as low a validation error.

    It is a hard link, so nothing is written, and prune() does not affect it.

    Args:
        error: top-1 validation error, in [0, 1].

    Raises:
        CheckpointError: the name cannot be given.
    """
    best = path.parent / BEST
    if error >= error_of(best):
        return
    try:
        with replacing(best) as temporary:
            try:
                os.link(path, temporary)
            except OSError:                      # a file system without hard links
                shutil.copyfile(path, temporary)
    except OSError as error_of_system:
        raise CheckpointError(f"the checkpoint {best} cannot be written: {error_of_system}") from error_of_system


def error_of(path: Path) -> float:
    """Return the validation error in a checkpoint's metadata; infinity if it has none, or there is no checkpoint."""
    try:
        error = load(path, lambda metadata: ())[1].get("validation_error")
    except CheckpointError:
        return math.inf
    return error if isinstance(error, int | float) else math.inf


def prune(folder: str | Path, keep: int | None, saved: Path | None = None) -> None:
    """Delete old checkpoints of a run folder, and the partial files of killed processes.

    Args:
        keep: number of newest checkpoints to keep; None keeps all.
        saved: the checkpoint just saved; None: the one of the latest iteration. Checkpoints of later iterations are
            deleted, too: they are damaged, or the run has been resumed from an earlier one.
    """
    found = snapshots(folder)
    first = found.index(saved) if saved in found else 0
    for path in [*found[:first], *(found[first + keep :] if keep else ())]:
        path.unlink()
    for name in ("checkpoint_*", BEST):          # a partial BEST is a link that would keep a deleted checkpoint's bytes
        for partial in Path(folder).glob(f".{name}{PARTIAL}"):
            shutil.rmtree(partial)


def description(array: np.ndarray) -> list[Any]:
    """Return the record's entry of an array: [dtype, shape, CRC-32 of its bytes]."""
    return [array.dtype.name, list(array.shape), checksum(array.reshape(-1).view("uint8"))]


def plain(value: object) -> Any:
    """Convert a NumPy scalar to a Python number, for JSON. Raises TypeError for anything else."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"checkpoint metadata must be representable in JSON, got {value!r}")
