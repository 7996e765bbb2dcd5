"""The tensors of a .pth file, in the zip format of PyTorch 1.6 and later or in the older one, and of safetensors.

    zip    NAME/data.pkl, a pickle of the state dict; NAME/data/KEY, the values of a storage, not compressed
    older  pickles one after another: a magic number, the protocol's version, the machine, the state dict, the keys of
           the storages; then for each key the number of values as int64, and the values

Values are read only for tensors that are asked for, after their sizes have been checked against the file's.

Source: torch/serialization.py.
"""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.pretrained.npy_files import DAMAGE
from alexnet.pretrained.pytorch.pickle_reader import (
    MAX_BYTES,
    PickledTensor,
    Storage,
    UnsafePickle,
    as_key,
    read_pickle,
)
from alexnet.pretrained.weights import WeightsError
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
WIDTHS = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
STATES = ("state_dict", "model", "model_state_dict")               # keys of a training checkpoint
PARALLEL = "module."                    # DataParallel puts it before every name
MAX_TENSORS = 100_000
LONGEST_TEXT = 250                      # characters of a file's text in an error message


class StoredTensor(NamedTuple):
    """A tensor of a file, which `read` returns as an array."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


Tensors = Mapping[str, StoredTensor]


def tensors_of(path: Path) -> Tensors:
    """Return name -> StoredTensor of a .pth or safetensors file; raises WeightsError."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head[8:9] == b"{":
            return safetensors(path)
        return zipped(path) if head.startswith(b"PK") else old(path)
    except UnsafePickle as error:
        raise WeightsError(f"{path} {clean(error)}") from error
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        raise WeightsError(f"{path} is damaged, or no file of torch.save: {clean(error)}") from error


def clean(text: object) -> str:
    """Format text from an untrusted file for an error message: one line of printable characters, limited length."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:LONGEST_TEXT])


def safetensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file."""
    try:
        listed = checkpoint_format.tensors_in(path)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: checkpoint_format.read_tensor(path, name)

    return {name: StoredTensor(shape, dtype, reader(name)) for name, (dtype, shape) in listed.items()}


# ---- the zip format


def zipped(path: Path) -> Tensors:
    """Return the tensors of a file in the zip format."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in entries:
            raise WeightsError(f"{path} is a TorchScript program; save model.state_dict() with torch.save instead")
        order = entries.get(f"{folder}byteorder")
        if order is not None and content(archive, order, 16) != b"little":
            raise WeightsError(f"{path} was written on a big-endian machine, which is not supported")
        state = read_pickle(io.BytesIO(content(archive, entries[pickles[0]], MAX_BYTES)))
    sizes = {name.removeprefix(f"{folder}data/"): info for name, info in entries.items()}

    def values(storage: Storage) -> bytes:
        info = sizes.get(storage.key)
        with zipfile.ZipFile(path) as archive:
            if info is None or info.file_size != bytes_of(storage):
                held = info.file_size if info else 0
                raise ValueError(f"storage {storage.key} has {held} bytes, its pickle needs {bytes_of(storage)}")
            return content(archive, info, info.file_size)      # also checks the CRC-32

    return stored(state, values, path)


def content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """Return the content of an entry that is not compressed and of at most `limit` bytes."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"its entry {info.filename[:60]!r} is compressed, which torch.save never does")
    if info.file_size > limit:
        raise ValueError(f"its entry {info.filename[:60]!r} has {info.file_size} bytes; at most {limit} are read")
    return archive.read(info)


# ---- the older format


def old(path: Path) -> Tensors:
    """Return the tensors of a file in the older format."""
    with path.open("rb") as file:
        pickles = io.BytesIO(file.read(MAX_BYTES))             # a pickle cannot ask for more than this
        try:
            begins = read_pickle(pickles), read_pickle(pickles)
        except ValueError:
            begins = (None, None)
        if begins != (MAGIC, PROTOCOL):
            raise UnsafePickle("is a pickle that torch.save did not write, which is never read because it can run code")
        machine = read_pickle(pickles)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError("it was not written on a little-endian machine")
        state, keys = read_pickle(pickles), read_pickle(pickles)
        if not isinstance(keys, list):
            raise ValueError("it does not list its storages")
        places: dict[str, tuple[int, int]] = {}                # key -> number of values, position of the first
        widths = {each.storage.key: bytes_of(each.storage) for each in pickled(state, path).values()}
        at, end = pickles.tell(), path.stat().st_size
        for key in (str(as_key(each)) for each in keys):
            if key not in widths or at + 8 + widths[key] > end:
                raise ValueError(f"it ends before storage {key[:60]}" if key in widths else "a storage has no tensor")
            file.seek(at)
            places[key] = int.from_bytes(file.read(8), "little"), at + 8
            at += 8 + widths[key]

    def values(storage: Storage) -> bytes:
        size, first = places[storage.key]
        if size != storage.size:
            raise ValueError(f"storage {storage.key} has {size} values, its pickle needs {storage.size}")
        with path.open("rb") as file:
            file.seek(first)
            return file.read(bytes_of(storage))

    return stored(state, values, path)


# ---- both


def pickled(state: Any, path: Path) -> dict[str, PickledTensor]:
    """Return name -> PickledTensor of a state dict, or of that in a training checkpoint, without "module."."""
    if isinstance(state, dict):
        state = next((state[key] for key in STATES if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state or len(state) > MAX_TENSORS:
        raise WeightsError(f"{path} holds no state dict; save model.state_dict() with torch.save")
    others = [name for name, value in state.items() if not isinstance(value, PickledTensor)]
    if others:
        raise WeightsError(f"{path} holds no state dict: its entry {str(others[0])[:60]!r} is no tensor")
    return {str(name).removeprefix(PARALLEL): value for name, value in state.items()}


def stored(state: Any, values: Callable[[Storage], bytes], path: Path) -> Tensors:
    """Return name -> StoredTensor of a state dict whose storages `values` reads."""

    def reader(tensor: PickledTensor) -> Callable[[], np.ndarray]:
        return lambda: array_of(tensor, values, path)

    return {
        name: StoredTensor(each.shape, each.storage.dtype, reader(each)) for name, each in pickled(state, path).items()
    }


def array_of(tensor: PickledTensor, values: Callable[[Storage], bytes], path: Path) -> np.ndarray:
    """Return a tensor as an array, which is a view of its storage and may be read-only; raises WeightsError."""
    storage, offset, shape, strides = tensor
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    try:
        if 0 in shape or last >= storage.size:
            raise ValueError(f"a tensor of shape {shape} is larger than its storage of {storage.size} values")
        found = np.frombuffer(values(storage), np.dtype(storage.dtype).newbyteorder("<"))
    except DAMAGE as error:
        raise WeightsError(f"{path} is damaged: {clean(error)}") from error
    steps = tuple(stride * found.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(found[offset:], shape, steps, writeable=False)


def bytes_of(storage: Storage) -> int:
    """Return the size of a storage in bytes."""
    return storage.size * WIDTHS.get(storage.dtype, 1)
