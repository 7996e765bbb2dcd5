"""Checkpoints: everything a run needs to go on, in one safetensors file that is whole or absent.

A file holds named arrays and a metadata mapping.  Its header carries one text, the record: the format's version,
the metadata, and dtype, shape and CRC-32 of every array; the CRC-32 of the record stands beside it.  So a flipped
bit anywhere is found, and nothing is ever unpickled.  Written beside its final name, synced, then renamed: a kill
or a full disk leaves the file that was there before.
"""

import json
import os
import re
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

VERSION = 1
MEAN = "mean"                           # the mean image's name among the arrays, in a run's checkpoint and in exports
RECORD = {"version": int, "metadata": dict, "arrays": dict}
NAME = re.compile(r"checkpoint_([0-9]{8,})\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used: the message is one sentence."""


class ForeignFile(CheckpointError):
    """A safetensors file that is no checkpoint; `names` are those of its arrays."""

    def __init__(self, sentence, names):
        super().__init__(sentence)
        self.names = names


def snapshot_path(folder, iteration):
    """The checkpoint file of `iteration` in the run folder `folder`."""
    return Path(folder) / f"checkpoint_{iteration:08d}.safetensors"


def snapshots(folder):
    """The checkpoint files of the run folder `folder`, newest first."""
    found = [path for path in Path(folder).glob("checkpoint_*.safetensors") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]), reverse=True)


def save(path, arrays, metadata):
    """Write `arrays` (name -> ndarray) and `metadata` (what JSON can say, keys are text) to `path`, or not at all.

    Raises CheckpointError when the disk refuses; a file that was at `path` is then still there, unharmed.
    """
    path = Path(path)
    # safetensors takes an array's memory as it lies, so it must lie in order
    arrays = {name: np.require(array, array.dtype.newbyteorder("="), "C") for name, array in arrays.items()}
    record = json.dumps({
        "version": VERSION,
        "metadata": metadata,
        "arrays": {name: description(array) for name, array in arrays.items()},
    }, default=plain)  # fmt: skip
    # a folder of its own, for safetensors leaves files of unknown names when it is killed
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.mkdir(exist_ok=True)
        save_file(arrays, partial / path.name, {"record": record, "record_crc32": checksum(record.encode())})
        (partial / path.name).chmod(partial.stat().st_mode & 0o666)      # as the umask has it, like other files
        sync(partial / path.name)
        os.replace(partial / path.name, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(path, wanted=None):
    """(arrays, metadata) of the checkpoint `path`, every bit that is read is checked; raises CheckpointError.

    wanted  metadata -> the names of the arrays to read, those that are there; None: all
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            record = checked_record(file.metadata() or {}, path, names)
            chosen = set(names if wanted is None else wanted(record["metadata"]))
            arrays = {name: file.get_tensor(name) for name in names if name in chosen}
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except (OSError, SafetensorError, TypeError) as error:       # TypeError: a dtype that NumPy lacks
        raise CheckpointError(f"{path} is no checkpoint, or damaged: {error}") from error
    for name, array in arrays.items():
        if record["arrays"].get(name) != description(array):
            raise CheckpointError(f"{path} is damaged: {name} is not as it was saved (CRC-32, shape or type)")
    if lost := record["arrays"].keys() - set(names):
        raise CheckpointError(f"{path} is damaged: it lost {min(lost)}")
    return arrays, record["metadata"]


def load_from(place, wanted=None):
    """(path, arrays, metadata) of a checkpoint, or of the newest that loads in a run's folder; raises CheckpointError.

    wanted  as load's
    """
    place = Path(place)
    if not place.is_dir():
        return place, *load(place, wanted)
    found = load_latest(place, wanted)
    if found is None:
        raise CheckpointError(f"{place} holds no checkpoint")
    return found


def checked_record(header, path, names):
    """The record in the `header` of a safetensors file with arrays of these names, if it is whole and of a version
    that this code reads."""
    text = header.get("record")
    if text is None:
        raise ForeignFile(f"{path} is a safetensors file, but no checkpoint of a run: it has no record", names)
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


def parsed(text):
    """What the JSON `text` says, where it is a mapping; else an empty one."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def check_arrays(arrays, expected, source):
    """Raise CheckpointError unless `arrays` has exactly the names, shapes and dtypes of `expected`.

    expected  name -> (shape, dtype)
    source    what the message calls the arrays: the checkpoint's path
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


def check_metadata(metadata, expected, source):
    """Raise CheckpointError unless `metadata` says what `expected` (name -> value) does: the model, the workers."""
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise CheckpointError(f"{source} was saved with {name} {metadata.get(name)!r}, this run has {value!r}")


def latest(folder):
    """The newest checkpoint of the run folder `folder` that loads, or None when it has none; see load_latest."""
    found = load_latest(folder)
    return found and found[0]


def load_latest(folder, wanted=None):
    """(path, arrays, metadata) of the newest checkpoint of a run folder that loads, or None when it has none.

    One that does not load is passed over with a warning; raises CheckpointError when none loads.

    wanted  as load's
    """
    found = snapshots(folder)
    for path in found:
        try:
            return path, *load(path, wanted)
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} loads")
    return None


def prune(folder, keep):
    """Delete all but the `keep` newest checkpoints of the run folder (None: keep all) and what kills left behind."""
    for path in snapshots(folder)[keep:] if keep else ():
        path.unlink()
    for partial in Path(folder).glob(".checkpoint_*.partial"):
        shutil.rmtree(partial)


def description(array):
    """What the record holds of an array: [dtype, shape, CRC-32 of its bytes]."""
    return [array.dtype.name, list(array.shape), checksum(array.reshape(-1).view("uint8"))]


def checksum(data):
    return f"{zlib.crc32(data):08x}"


def plain(value):
    """The Python number of a NumPy scalar, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"checkpoint metadata must be what JSON can say, got {value!r}")


def sync(path):
    """Have the disk keep what was written to the file, or renamed within the folder, `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
